package relay

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// echo answers datagrams with themselves behind a name.
func echo(t testing.TB, addr, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for buf := make([]byte, 70000); ; {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(append([]byte(name), buf[:n]...), from)
		}
	}()
	return addrPort(c.LocalAddr())
}

// dialUDP is connected: it hears nothing that does not come from the VIP.
func dialUDP(t testing.TB, f lb.Frontend) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(f.VIP, f.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func ask(t testing.TB, c *net.UDPConn, what, want []byte) {
	t.Helper()
	if _, err := c.Write(what); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 70000)
	n, err := c.Read(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Fatalf("answer has %d bytes, want %d", n, len(want))
	}
}

func TestDatagrams(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		s := &static{backends: []netip.AddrPort{echo(t, addr, "")}}
		r := newRelay(t, Options{Balancer: s})
		f := r.front(t, addr, lb.UDP)
		first := dialUDP(t, f)
		for _, n := range []int{0, 1, 1400, 9000, 65507} {
			what := bytes.Repeat([]byte{byte(n)}, n)
			ask(t, first, what, what)
		}
		for i := range 300 {
			what := []byte{byte(i), byte(i >> 8)}
			ask(t, dialUDP(t, f), what, what)
		}
	}
}
