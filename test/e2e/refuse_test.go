package e2e

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// Who asks a VIP that nobody serves is told so at once: clients must not wait for a timeout.
func TestVIPWithoutBackendsRefuses(t *testing.T) { eachMode(t, testVIPWithoutBackendsRefuses) }

func testVIPWithoutBackendsRefuses(t *testing.T, mode string) {
	n := newNode(t, mode)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	client := n.container(t, "client", n.bridged())
	plain := n.unattached(t, "plain")
	hostSource(t, n)
	for _, from := range []*place{client.place, n.place, plain.place} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			expectRefusal(t, from, proto, front(vip(10), family))
			expectRefusal(t, from, proto, netip.AddrPortFrom(vip(10)[family], 81)) // a port of no service
		})
	}

	// A client that was refused is served as soon as there is a backend.
	n.container(t, "web", n.bridged(conf{"services": []string{"web"}})).serve(targetPort)
	n.waitForBackends("web", 4)
	for _, from := range []*place{client.place, n.place, plain.place} {
		eachWay(t, func(t *testing.T, family int, proto string) { from.mustAsk(t, proto, front(vip(10), family)) })
	}
}

func expectRefusal(t *testing.T, from *place, proto string, to netip.AddrPort) {
	t.Helper()
	begin := time.Now()
	a, err := from.ask(proto, to)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s asks %s %s: %+v, %v after %v, want it refused", from.name, proto, to, a, err, time.Since(begin))
	}
}
