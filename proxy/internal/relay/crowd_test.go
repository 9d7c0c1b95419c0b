package relay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// crowdEnv makes the test binary a process with many clients and their server: a connection through the relay has four
// ends, too many for one process's descriptors.
const crowdEnv = "TCLB_RELAY_CROWD"

func TestMain(m *testing.M) {
	if os.Getenv(crowdEnv) == "" {
		os.Exit(m.Run())
	}
	if err := crowd(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// crowd serves at the address that it says first, opens as many connections as it reads to the address that it reads,
// says ok when all of them have been answered, and leaves when its input ends.
func crowd(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for buf := make([]byte, 64); ; {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					_, _ = c.Write(buf[:n])
				}
			}()
		}
	}()
	fmt.Fprintln(out, l.Addr())
	var front string
	var count int
	if _, err := fmt.Fscanln(in, &front, &count); err != nil {
		return err
	}
	clients := make([]net.Conn, count)
	for i := range clients {
		if clients[i], err = net.Dial("tcp", front); err != nil {
			return err
		}
	}
	for i, c := range clients {
		if _, err := c.Write([]byte(c.LocalAddr().String())); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	for i, c := range clients {
		what := []byte(c.LocalAddr().String())
		got := make([]byte, len(what))
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, what) {
			return fmt.Errorf("connection %d: %q, %w", i, got, err)
		}
	}
	fmt.Fprintln(out, "ok")
	_, err = io.Copy(io.Discard, in)
	return err
}

func TestTenThousandConnections(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crowdEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	said := bufio.NewReader(out)
	line, err := said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	s := &static{backends: []netip.AddrPort{netip.MustParseAddrPort(strings.TrimSpace(line))}}
	r := newRelay(t, Options{Balancer: s, ConnectTimeout: time.Minute}) // the server's queue may be full for a while
	count := min(10000, r.descriptors.left.Load()/connDescriptors)      // not every machine lets a process have so many
	front := r.front(t, "127.0.0.1", lb.TCP)
	fmt.Fprintln(in, netip.AddrPortFrom(front.VIP, front.Port), count)
	if line, err = said.ReadString('\n'); err != nil || line != "ok\n" {
		t.Fatalf("the clients say %q, %v", line, err)
	}
	if got := r.connections.Load(); got != count {
		t.Errorf("the relay has %d connections, want %d", got, count)
	}
	for _, w := range r.workers {
		if share := w.load.Load(); share < count/int64(len(r.workers))-imbalance-1 {
			t.Errorf("a worker has %d of %d connections", share, count)
		}
	}
	in.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// limitDescriptors leaves the process none, until the test gives them back.
func limitDescriptors(t *testing.T) (giveBack func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	next, err := unix.Dup(0) // the lowest free number
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Fatal(err)
		}
	}
}

// Out of descriptors, a worker looks away from its listeners for a while. It neither spins nor loses a client.
func TestNoDescriptorsLeft(t *testing.T) {
	for _, real := range []bool{true, false} { // the kernel's limit, or the relay's own account
		backend := listenTCP(t, "127.0.0.1")
		s := &static{backends: []netip.AddrPort{addrPort(backend.Addr())}}
		r := newRelay(t, Options{Balancer: s, Threads: 1})
		front := r.front(t, "127.0.0.1", lb.TCP)
		w := r.workers[0]
		busy, goOn := make(chan struct{}), make(chan struct{})
		w.post(func() { close(busy); <-goOn })
		<-busy
		client := dial(t, front) // the kernel has accepted it
		var giveBack func()
		if real {
			giveBack = limitDescriptors(t)
		} else {
			had := r.descriptors.left.Swap(1)
			giveBack = func() { r.descriptors.give(had) }
		}
		close(goOn)
		paused, watched := false, true
		for range 1000 {
			w.do(func() {
				if paused = w.resume != 0; paused {
					a := w.acceptors[0]
					watched = w.control(unix.EPOLL_CTL_MOD, a.fd, a.slot, clientSide, unix.EPOLLIN) == 0
				}
			})
			if paused {
				break
			}
			time.Sleep(time.Millisecond)
		}
		giveBack()
		if !paused || watched {
			t.Errorf("listeners paused: %v, still watched: %v", paused, watched)
		}
		r.pass(pauseInterval)
		say(t, client, accepted(t, backend), []byte("served after all"))
	}
}
