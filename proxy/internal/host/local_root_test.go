package host

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// locals returns the local routes of ours.
func locals(t *testing.T) []string {
	t.Helper()
	var out []string
	for family := range families {
		have, _, err := localRoutes(family)
		must(t, err)
		for a := range have {
			out = append(out, a.String())
		}
	}
	return out
}

// ownRoute waits for the kernel's own local route of an address, which comes with the device's carrier.
func ownRoute(t *testing.T, own netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		_, others, err := localRoutes(familyOf(own))
		must(t, err)
		if containsAddr(others, own) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no local route of %s", own)
		}
	}
}

func up(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func TestLocalRoutesAreThoseThatAreNeeded(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		up(t, "lo")
		address(t, "eth0", "192.0.2.1/24", "2001:db8::1/64")
		a := netip.MustParseAddr
		ownRoute(t, a("2001:db8::1"))
		sync := func(want string, vips ...netip.Addr) {
			t.Helper()
			failed, err := SyncLocal(vips)
			if err != nil || len(failed) > 0 {
				t.Fatalf("%v: failed %v, %v", vips, failed, err)
			}
			got := locals(t)
			if len(got) != len(strings.Fields(want)) {
				t.Errorf("%v: routes %v, want %s", vips, got, want)
			}
			for _, r := range got {
				if !strings.Contains(want, r) {
					t.Errorf("%v: routes %v, want %s", vips, got, want)
				}
			}
		}
		// Addresses of the node need none.
		sync("10.96.0.1 fd00::1", a("10.96.0.1"), a("fd00::1"), a("127.0.0.9"), a("::1"), a("192.0.2.1"), a("2001:db8::1"))
		sync("10.96.0.1 fd00::1", a("10.96.0.1"), a("fd00::1"))
		sync("10.96.0.2", a("10.96.0.2"))
		// What became an address needs none any more, and what is none any more needs one.
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		more, err := netlink.ParseAddr("10.96.0.2/32")
		must(t, err)
		must(t, netlink.AddrAdd(lo, more))
		sync("", a("10.96.0.2"))
		must(t, netlink.AddrDel(lo, more))
		sync("10.96.0.2", a("10.96.0.2"))
		if n, err := RemoveLocal(); n != 1 || err != nil {
			t.Errorf("removed %d, %v", n, err)
		}
		sync("")
	})
}

// Routes of others are theirs, and stay.
func TestLocalRoutesOfOthersStay(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		up(t, "lo")
		vip := netip.MustParseAddr("10.96.0.1")
		must(t, addLocal(vip))
		have, _, err := localRoutes(0)
		must(t, err)
		r := have[vip]
		must(t, netlink.RouteDel(&r))
		r.Protocol = unix.RTPROT_STATIC
		must(t, netlink.RouteAdd(&r))
		if failed, err := SyncLocal([]netip.Addr{vip}); err != nil || len(failed) > 0 || len(locals(t)) != 0 {
			t.Errorf("failed %v, %v, routes %v", failed, err, locals(t))
		}
		if n, err := RemoveLocal(); n != 0 || err != nil {
			t.Errorf("removed %d, %v", n, err)
		}
		if _, others, err := localRoutes(0); err != nil || !containsAddr(others, vip) {
			t.Errorf("the other one's route is gone: %v, %v", others, err)
		}
	})
}

func containsAddr(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func TestLocalRouteThatCannotBeMadeSaysWhatToDo(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		vip, own := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.0.2.1")
		address(t, "eth0", "192.0.2.1/24")
		up(t, "lo")
		withoutCapabilities(t)
		failed, err := SyncLocal([]netip.Addr{vip, own})
		if err != nil || len(failed) != 1 || !strings.Contains(failed[vip].Error(), "CAP_NET_ADMIN") {
			t.Errorf("failed %v, %v", failed, err)
		}
	})
}

// withoutCapabilities takes them from this thread, which ends with its test.
func withoutCapabilities(t *testing.T) {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	must(t, unix.Capset(&head, &none[0]))
}
