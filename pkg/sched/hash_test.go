package sched

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// The expected values come from an implementation in C of the definition, not from this package.

func TestTupleHashIsFrozen(t *testing.T) {
	for _, c := range []struct {
		client, vip string
		proto       lb.Protocol
		want        uint32
	}{
		{"192.0.2.1:40000", "198.51.100.10:80", lb.TCP, 0xa1d0b3ed},
		{"192.0.2.1:40000", "198.51.100.10:80", lb.UDP, 0x0a02a23f},
		{"192.0.2.1:40001", "198.51.100.10:80", lb.TCP, 0x000545f5},
		{"[::ffff:192.0.2.1]:40000", "[::ffff:198.51.100.10]:80", lb.TCP, 0xa1d0b3ed},
		{"[2001:db8::1]:40000", "[2001:db8:96::10]:443", lb.TCP, 0xfadec2a2},
		{"192.0.2.1:65535", "198.51.100.10:65535", lb.UDP, 0x42766151},
	} {
		got := TupleHash(netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.vip), c.proto)
		if got != c.want {
			t.Errorf("TupleHash(%s, %s, %s) = %#08x, want %#08x", c.client, c.vip, c.proto, got, c.want)
		}
	}
}

func TestClientHashIsFrozen(t *testing.T) {
	for client, want := range map[string]uint32{
		"192.0.2.1":   0x9fa0bbc5,
		"2001:db8::1": 0x0c364508,
		"::":          0x35a0506d,
	} {
		if got := ClientHash(netip.MustParseAddr(client)); got != want {
			t.Errorf("ClientHash(%s) = %#08x, want %#08x", client, got, want)
		}
	}
}

func TestProbeIsFrozen(t *testing.T) {
	for _, c := range []struct{ slot, i, size, want uint32 }{
		{0, 1, 256, 54},
		{0, 2, 256, 38},
		{255, 64, 256, 193},
		{12345, 1, 1 << 17, 118329},
		{12345, 7, 1 << 17, 76345},
		{1<<18 - 1, 64, 1 << 18, 198655},
	} {
		if got := Probe(c.slot, c.i, c.size); got != c.want {
			t.Errorf("Probe(%d, %d, %d) = %d, want %d", c.slot, c.i, c.size, got, c.want)
		}
	}
}

func TestSlotScalesTheHash(t *testing.T) {
	for _, c := range []struct{ hash, size, want uint32 }{
		{0, 512, 0}, {1<<32 - 1, 512, 511}, {1 << 31, 512, 256}, {1<<23 - 1, 512, 0}, {1 << 23, 512, 1}, {7, 0, 0},
	} {
		if got := Slot(c.hash, c.size); got != c.want {
			t.Errorf("Slot(%#x, %d) = %d, want %d", c.hash, c.size, got, c.want)
		}
	}
}

func TestNeighbouringClientsSpreadEvenly(t *testing.T) {
	const slots, ports = 256, 256 * 200
	var count [slots]int
	vip := netip.MustParseAddrPort("198.51.100.10:80")
	for p := range ports {
		client := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(p))
		count[Slot(TupleHash(client, vip, lb.TCP), slots)]++
	}
	chi := 0.0
	for _, n := range count {
		d := float64(n - ports/slots)
		chi += d * d / (ports / slots)
	}
	if chi > 350 { // 255 degrees of freedom: the odds of more are below 1 in 10,000
		t.Errorf("chi square over %d slots = %.0f, want at most 350", slots, chi)
	}
}
