package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestSyncMakesListenersEqual(t *testing.T) {
	c := connectThrough(t, Options{})
	other := lb.Frontend{VIP: netip.MustParseAddr("127.0.0.2"), Port: c.front.Port, Protocol: lb.TCP}
	sameIPv6 := lb.Frontend{VIP: netip.MustParseAddr("::1"), Port: c.front.Port, Protocol: lb.TCP}
	datagrams := lb.Frontend{VIP: c.front.VIP, Port: c.front.Port, Protocol: lb.UDP}
	before := c.r.listeners[c.front]
	for range 2 {
		if failed := c.r.Sync([]lb.Frontend{c.front, other, sameIPv6, datagrams}); len(failed) > 0 {
			t.Fatal(failed)
		}
	}
	if c.r.listeners[c.front] != before || len(c.r.listeners) != 4 {
		t.Errorf("there are %d listeners, or one that stays was replaced", len(c.r.listeners))
	}
	for _, f := range []lb.Frontend{c.front, other, sameIPv6} {
		say(t, dial(t, f), accepted(t, c.backend), []byte("hello"))
	}
	if failed := c.r.Sync([]lb.Frontend{other}); len(failed) > 0 {
		t.Fatal(failed)
	}
	expectRefused(t, c.front)
	say(t, c.client, c.server, []byte("a connection survives its listener"))
	if failed := c.r.Sync([]lb.Frontend{c.front, other}); len(failed) > 0 {
		t.Fatal(failed)
	}
	say(t, dial(t, c.front), accepted(t, c.backend), []byte("hello"))
}

func TestFamiliesDoNotShareAPort(t *testing.T) {
	r := newRelay(t, Options{Balancer: &static{}})
	port := freePort(t, "127.0.0.1")
	var all []lb.Frontend
	for _, addr := range []string{"::", "0.0.0.0"} {
		for _, protocol := range []lb.Protocol{lb.TCP, lb.UDP} {
			all = append(all, lb.Frontend{VIP: netip.MustParseAddr(addr), Port: port, Protocol: protocol})
		}
	}
	if failed := r.Sync(all); len(failed) > 0 {
		t.Error(failed)
	}
}

func expectRefused(t *testing.T, f lb.Frontend) {
	t.Helper()
	if c, err := net.Dial("tcp", netip.AddrPortFrom(f.VIP, f.Port).String()); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("dial %s: %v, want it refused", f, err)
	}
}

// An IPv6 address that is routed here and on no device cannot be told from one that is nobody's: who says that they are
// routed may listen on it.
func TestRoutedAddressOfIPv6CanBeBound(t *testing.T) {
	front := lb.Frontend{VIP: netip.MustParseAddr("2001:db8::7"), Port: 4080, Protocol: lb.TCP}
	for routed, fails := range map[bool]int{false: 1, true: 0} {
		r := newRelay(t, Options{Balancer: &static{}, Routed: routed})
		if failed := r.Sync([]lb.Frontend{front}); len(failed) != fails {
			t.Errorf("routed %v: %v", routed, failed)
		}
		r.Sync(nil)
	}
}

func TestWhatCannotBeBoundIsExplainedAndTriedAgain(t *testing.T) {
	owner := listenTCP(t, "127.0.0.1")
	udpOwner, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := lb.Frontend{VIP: netip.MustParseAddr("127.0.0.1"), Port: addrPort(owner.Addr()).Port(), Protocol: lb.TCP}
	takenUDP := lb.Frontend{VIP: taken.VIP, Port: addrPort(udpOwner.LocalAddr()).Port(), Protocol: lb.UDP}
	elsewhere := lb.Frontend{VIP: netip.MustParseAddr("198.51.100.7"), Port: 80, Protocol: lb.TCP}
	elsewhere6 := lb.Frontend{VIP: netip.MustParseAddr("2001:db8::7"), Port: 80, Protocol: lb.UDP}
	sctp := lb.Frontend{VIP: taken.VIP, Port: 80, Protocol: 132}
	fine := lb.Frontend{VIP: taken.VIP, Port: freePort(t, "127.0.0.1"), Protocol: lb.TCP}
	r := newRelay(t, Options{Balancer: &static{}})
	all := []lb.Frontend{taken, takenUDP, elsewhere, elsewhere6, sctp, fine}
	failed := r.Sync(all)
	for front, says := range map[lb.Frontend]string{
		taken:      "ss -lnpt 'sport = ",
		takenUDP:   "ss -lnpu 'sport = ",
		elsewhere:  "ip address add 198.51.100.7/32 dev lo",
		elsewhere6: "ip address add 2001:db8::7/128 dev lo",
		sctp:       "only tcp and udp",
	} {
		if err := failed[front]; err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want advice with %q", front, err, says)
		}
	}
	if len(failed) != 5 {
		t.Errorf("failed: %v", failed)
	}
	owner.Close()
	udpOwner.Close()
	if failed = r.Sync(all); len(failed) != 3 || failed[taken] != nil || failed[takenUDP] != nil {
		t.Errorf("failed: %v, want those that are elsewhere", failed)
	}
	if err := bindError(lb.Frontend{VIP: taken.VIP, Port: 80, Protocol: lb.TCP}, unix.EACCES); !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Error(err)
	}
}

func TestShutdownLetsConnectionsEnd(t *testing.T) {
	c := connectThrough(t, Options{Threads: 1})
	c.s.mu.Lock()
	c.s.refuse = true // a probe that comes too early leaves no connection
	c.s.mu.Unlock()
	done := make(chan error)
	go func() { done <- c.r.Shutdown(context.Background()) }()
	for range 1000 {
		probe, err := net.Dial("tcp", netip.AddrPortFrom(c.front.VIP, c.front.Port).String())
		if errors.Is(err, unix.ECONNREFUSED) {
			break
		}
		if err == nil {
			probe.Close()
		}
		time.Sleep(time.Millisecond)
	}
	expectRefused(t, c.front)
	say(t, c.client, c.server, []byte("still carried"))
	select {
	case err := <-done:
		t.Fatalf("shut down with an open connection: %v", err)
	default:
	}
	c.client.Close()
	expectEOF(t, c.server)
	c.server.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if failed := c.r.Sync([]lb.Frontend{c.front}); !errors.Is(failed[c.front], errClosed) {
		t.Errorf("sync after shutdown: %v", failed)
	}
	// Whoever calls it late meets nobody, nor whoever has the worker's descriptors now.
	w := c.r.workers[0]
	for number := -1; number < w.wake; {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		number = fd
	}
	c.flow.gone()
	if _, err := unix.Read(w.wake, make([]byte, 8)); errors.Is(err, unix.EBADF) || err == nil {
		t.Errorf("a stopped worker's descriptor, now another's: read %v", err)
	}
}

func TestShutdownCutsWhatDoesNotEnd(t *testing.T) {
	c := connectThrough(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.r.Shutdown(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "reset 1 connections") {
		t.Errorf("shutdown: %v", err)
	}
	expectReset(t, c.client)
	expectReset(t, c.server)
	c.flow.expect(t, told{connected: 1, closings: 1, ends: 1})
	if c.r.descriptors.left.Load() != c.left() {
		t.Errorf("%d descriptors are left, want %d", c.r.descriptors.left.Load(), c.left())
	}
}

// left is how many descriptors a relay without connections has.
func (c *through) left() int64 {
	var fresh descriptors
	fresh.raise()
	return fresh.left.Load()
}

// namespaceEnv tells a test that it runs in a network namespace of its own.
const namespaceEnv = "TCLB_RELAY_NAMESPACE"

// inNamespace runs the test that calls it once more, alone in a new network namespace. It returns false where
// there is nothing more to do.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) != "" {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a network namespace: %v\n%s", err, out)
	}
	return false
}

func TestNoSourcePortLeft(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, args := range [][]string{{"ip", "link", "set", "lo", "up"}, {"sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	backend, err := net.Listen("tcp", "127.0.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	spare, err := net.Listen("tcp", "127.0.0.1:7001")
	if err != nil {
		t.Fatal(err)
	}
	s := &static{backends: []netip.AddrPort{addrPort(backend.Addr()), addrPort(spare.Addr())}}
	r := newRelay(t, Options{Balancer: s})
	front := lb.Frontend{VIP: netip.MustParseAddr("127.0.0.1"), Port: 80, Protocol: lb.TCP}
	if failed := r.Sync([]lb.Frontend{front}); len(failed) > 0 {
		t.Fatal(failed)
	}
	dialFrom := func(port int) *net.TCPConn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
		c, err := d.Dial("tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c.(*net.TCPConn)
	}
	for i := range 4 { // two to each backend
		c := dialFrom(50000 + i)
		l := map[bool]net.Listener{true: backend, false: spare}[i < 2]
		say(t, c, accepted(t, l.(*net.TCPListener)), []byte("hello"))
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50004}}
	if c, err := d.Dial("tcp", "127.0.0.1:80"); err == nil {
		defer c.Close()
	}
	f := s.began(t, 4)
	f.ended(t)
	if tried := f.told().failures; len(tried) != 2 || tried[0] != Exhausted || tried[1] != Exhausted {
		t.Errorf("the flow without a port was told %v", tried)
	}
}
