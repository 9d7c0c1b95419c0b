package host

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var quiet = slog.New(slog.DiscardHandler)

// inNamespace runs f in a network namespace of its own, on a thread that ends with it.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread must not be used again
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a namespace: %v", err)
			return
		}
		f(t)
	}()
	<-done
}

// address gives the namespace a device of that name with addresses.
func address(t *testing.T, name string, addrs ...string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = 1400
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	dev, err := netlink.LinkByName(name)
	must(t, err)
	peer, err := netlink.LinkByName(name + "p")
	must(t, err)
	must(t, netlink.LinkSetUp(peer))
	must(t, netlink.LinkSetUp(dev))
	for _, a := range addrs {
		parsed, err := netlink.ParseAddr(a)
		must(t, err)
		parsed.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(dev, parsed))
	}
	return dev
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// routes returns the routes of our protocol as text.
func routeTexts(t *testing.T) []string {
	t.Helper()
	var out []string
	for family := range families {
		list, err := ours(families[family])
		must(t, err)
		for i := range list {
			out = append(out, prefixOf(&list[i], family).String()+" from "+list[i].Src.String())
		}
	}
	slices.Sort(out)
	return out
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func TestSyncMakesAndRepairsTheHostPath(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		address(t, "up0", "192.0.2.1/24", "2001:db8::1/64")
		var attached []int
		h := New(func(ifindex int) error { attached = append(attached, ifindex); return nil }, quiet)
		want := []string{"10.96.0.0/16 from 192.0.2.1", "198.51.100.7/32 from 192.0.2.1", "fd00:96::/112 from 2001:db8::1"}
		sync := func() State {
			t.Helper()
			addrs, err := Addresses()
			must(t, err)
			st, err := h.Sync(prefixes("10.96.0.0/16", "198.51.100.7/32", "fd00:96::/112"), addrs)
			must(t, err)
			if diff := cmp.Diff(want, routeTexts(t)); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			return st
		}
		st := sync()
		if len(attached) != 1 || uint32(attached[0]) != st.Ifindex || st.MAC == [6]byte{} {
			t.Errorf("attached to %v, state %+v", attached, st)
		}
		if again := sync(); again != st {
			t.Errorf("a second Sync made another device: %+v, before %+v", again, st)
		}

		dev, err := netlink.LinkByName(Device)
		must(t, err)
		must(t, netlink.LinkSetDown(dev)) // takes the routes away as well
		sync()
		must(t, netlink.LinkSetARPOn(dev))
		sync()
		if dev, err = netlink.LinkByName(Device); err != nil || dev.Attrs().RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("ARP is on: %v", err)
		}
		must(t, netlink.LinkDel(dev))
		if next := sync(); next.Ifindex == st.Ifindex {
			t.Error("a deleted device kept its index")
		}
	})
}

func TestSyncTouchesRoutesOfItsOwnOnly(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		dev := address(t, "up0", "192.0.2.1/24")
		foreign := netlink.Route{LinkIndex: dev.Attrs().Index, Dst: netlinkNet(t, "203.0.113.0/24"), Protocol: unix.RTPROT_STATIC}
		must(t, netlink.RouteAdd(&foreign))
		h := New(func(int) error { return nil }, quiet)
		source := [2]netip.Addr{netip.MustParseAddr("192.0.2.1")}
		_, err := h.Sync(prefixes("10.96.0.0/16", "10.97.0.1/32"), source)
		must(t, err)
		_, err = h.Sync(prefixes("10.97.0.1/32"), source)
		must(t, err)
		if diff := cmp.Diff([]string{"10.97.0.1/32 from 192.0.2.1"}, routeTexts(t)); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
		must(t, Remove())
		must(t, Remove())
		if got := routeTexts(t); len(got) > 0 {
			t.Errorf("after Remove: %v", got)
		}
		if _, err := netlink.LinkByName(Device); !isMissing(err) {
			t.Errorf("after Remove: %v", err)
		}
		static, err := netlink.RouteListFiltered(unix.AF_INET, &foreign, netlink.RT_FILTER_DST)
		must(t, err)
		if len(static) != 1 {
			t.Errorf("the route of somebody else is gone: %v", static)
		}
	})
}

func netlinkNet(t *testing.T, s string) *net.IPNet {
	t.Helper()
	n, err := netlink.ParseIPNet(s)
	must(t, err)
	return n
}

func TestSourceFollowsTheAddress(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		dev := address(t, "up0", "192.0.2.1/24")
		h := New(func(int) error { return nil }, quiet)
		_, err := h.Sync(prefixes("10.96.0.0/16"), [2]netip.Addr{netip.MustParseAddr("192.0.2.1")})
		must(t, err)
		second, err := netlink.ParseAddr("192.0.2.9/24")
		must(t, err)
		must(t, netlink.AddrAdd(dev, second))
		_, err = h.Sync(prefixes("10.96.0.0/16"), [2]netip.Addr{netip.MustParseAddr("192.0.2.9")})
		must(t, err)
		if diff := cmp.Diff([]string{"10.96.0.0/16 from 192.0.2.9"}, routeTexts(t)); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
	})
}

func TestFamilyWithoutAddressHasNoRoutes(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0))
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
		address(t, "up0", "192.0.2.1/24")
		h := New(func(int) error { return nil }, quiet)
		addrs, err := Addresses()
		must(t, err)
		_, err = h.Sync(prefixes("10.96.0.0/16", "fd00:96::/112"), addrs)
		must(t, err)
		// Also where the configuration names an address that cannot be used.
		_, err = h.Sync(prefixes("10.96.0.0/16", "fd00:96::/112"), [2]netip.Addr{addrs[0], netip.MustParseAddr("2001:db8::1")})
		if err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("with IPv6 off: %v", err)
		}
		if diff := cmp.Diff([]string{"10.96.0.0/16 from 192.0.2.1"}, routeTexts(t)); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
	})
}

// The kernel takes no route from an address that it still checks for duplicates. On a bridge
// without ports that lasts until a container comes.
func TestTentativeAddressIsNoSource(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		dev, err := netlink.LinkByName("br0")
		must(t, err)
		must(t, netlink.LinkSetUp(dev))
		parsed, err := netlink.ParseAddr("2001:db8::1/64")
		must(t, err)
		must(t, netlink.AddrAdd(dev, parsed))
		addrs, err := Addresses()
		must(t, err)
		if addrs[1].IsValid() {
			t.Errorf("%s is the node's address", addrs[1])
		}
		must(t, netlink.AddrDel(dev, parsed))
		parsed.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(dev, parsed))
		if addrs, err = Addresses(); err != nil || addrs[1] != netip.MustParseAddr("2001:db8::1") {
			t.Errorf("the node's address is %s, %v", addrs[1], err)
		}
	})
}

func TestNodeAddressPrefersTheDefaultRoute(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		if got, err := Addresses(); err != nil || got != [2]netip.Addr{} {
			t.Errorf("an empty node has addresses %v, %v", got, err)
		}
		address(t, "aa0", "169.254.9.9/16")
		want := func(text string) {
			t.Helper()
			if got, err := Addresses(); err != nil || got[0] != netip.MustParseAddr(text) {
				t.Errorf("address %v, %v, want %s", got[0], err, text)
			}
		}
		want("169.254.9.9")
		address(t, "bb0", "192.0.2.1/24")
		want("192.0.2.1")
		last := address(t, "cc0", "198.51.100.1/24")
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: last.Attrs().Index, Dst: netlinkNet(t, "0.0.0.0/0"), Gw: netlinkNet(t, "198.51.100.254/32").IP}))
		want("198.51.100.1")
	})
}

func TestPrefixesLeaveOutVIPsOfThePool(t *testing.T) {
	got := Prefixes(prefixes("10.96.0.0/16"), []netip.Addr{
		netip.MustParseAddr("10.96.3.4"), netip.MustParseAddr("10.97.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.97.0.1"),
	})
	if diff := cmp.Diff([]string{"10.96.0.0/16", "10.97.0.1/32", "fd00::1/128"}, texts(got)); diff != "" {
		t.Errorf("prefixes (-want +got):\n%s", diff)
	}
}

func texts(ps []netip.Prefix) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}
