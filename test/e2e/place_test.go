package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// place is a network namespace: a node, a container, or something outside of the node. Sockets made
// there stay there, whichever thread uses them.
type place struct {
	t     *testing.T
	name  string // of the namespace, and of its servers' answers
	space ns.NetNS
	ports atomic.Uint32 // that datagrams have left from

	mu      sync.Mutex
	closers []func() // what keeps the namespace alive
}

// newPlace makes a namespace with lo up. name must be unique on this machine.
func newPlace(t *testing.T, name string) *place {
	t.Helper()
	p := &place{t: t, name: name}
	path := filepath.Join(netnsDir, prefix+name)
	if err := makeNamespace(prefix + name); err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	t.Cleanup(p.vanish)
	var err error
	if p.space, err = ns.GetNS(path); err != nil {
		t.Fatal(err)
	}
	p.closers = append(p.closers, func() { _ = p.space.Close() })
	p.do(func() error {
		lo, err := netlinksafe.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	// Duplicate address detection would hold every address back for a second.
	for _, dir := range []string{"all", "default"} {
		p.sysctl("net/ipv6/conf/"+dir+"/accept_dad", "0")
	}
	return p
}

// makeNamespace gives the namespace to a thread that is lost with it.
func makeNamespace(name string) error {
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock
		handle, err := netns.NewNamed(name)
		if err == nil {
			err = handle.Close()
		}
		made <- err
	}()
	return <-made
}

// path is what CNI_NETNS is.
func (p *place) path() string { return filepath.Join(netnsDir, prefix+p.name) }

// vanish ends everything that runs there, and the namespace with it. Once is enough.
func (p *place) vanish() {
	p.mu.Lock()
	closers := p.closers
	p.closers = nil
	p.mu.Unlock()
	for i := len(closers) - 1; i >= 0; i-- {
		closers[i]()
	}
	if _, err := os.Lstat(p.path()); err != nil {
		return
	}
	if err := unix.Unmount(p.path(), unix.MNT_DETACH); err != nil {
		p.t.Errorf("unmount namespace %s: %v", p.name, err)
	}
	if err := os.Remove(p.path()); err != nil {
		p.t.Errorf("remove namespace %s: %v", p.name, err)
	}
}

// keep has f called when the place vanishes.
func (p *place) keep(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closers = append(p.closers, f)
}

// try runs f there. What f starts (sockets, processes) is there as well; goroutines are not.
func (p *place) try(f func() error) error {
	return p.space.Do(func(ns.NetNS) error { return f() })
}

// do is try for what must work.
func (p *place) do(f func() error) {
	p.t.Helper()
	if err := p.try(f); err != nil {
		p.t.Fatalf("on %s: %v", p.name, err)
	}
}

// sysctl sets a key below /proc/sys, which shows the calling thread's namespace.
func (p *place) sysctl(key, value string) {
	p.t.Helper()
	p.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0) })
}

// run executes a command there, which must succeed, and returns what it printed.
func (p *place) run(command string, args ...string) string {
	p.t.Helper()
	cmd := exec.Command(command, args...)
	var out []byte
	p.do(func() (err error) {
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w: %s", cmd, err, out)
		}
		return err
	})
	return string(out)
}

// ip runs "ip" with the words of command.
func (p *place) ip(command string) string {
	p.t.Helper()
	return p.run("ip", strings.Fields(command)...)
}

// start runs a process there that does not outlive the test binary, however that ends: the
// process gets SIGKILL with the thread that started it, which is kept for it alone.
func (p *place) start(cmd *exec.Cmd) error {
	started, gone := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		err := unix.Setns(int(p.space.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		<-gone
	}()
	p.keep(func() { close(gone) })
	return <-started
}

// join connects two places by a veth pair with the given prefixes; names are short.
func join(a *place, nameA string, b *place, nameB string, addrsA, addrsB []string) {
	a.t.Helper()
	a.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.space.Fd())),
		})
	})
	a.configure(nameA, addrsA...)
	b.configure(nameB, addrsB...)
}

// configure gives an interface addresses and sets it up.
func (p *place) configure(name string, addrs ...string) {
	p.t.Helper()
	p.do(func() error {
		l, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("give %s the address %s: %w", name, s, err)
			}
		}
		return netlink.LinkSetUp(l)
	})
}

// links are the names of the devices there.
func (p *place) links() []string {
	p.t.Helper()
	var out []string
	p.do(func() error {
		all, err := netlinksafe.LinkList()
		for _, l := range all {
			out = append(out, l.Attrs().Name)
		}
		return err
	})
	return out
}

// The families, as indexes of pairs of addresses.
const (
	v4 = 0
	v6 = 1
)

var families = [2]string{"IPv4", "IPv6"}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return v4
	}
	return v6
}
