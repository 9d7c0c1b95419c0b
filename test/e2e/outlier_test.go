package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// gone is how soon backends must be out that fail their clients.
	gone = time.Second
	// ejection is how long they are out the first time, before they are tried again.
	ejection = 5 * time.Second
	// clients are how many ask at once, each with a rest between its requests.
	clients = 24
	rest    = 10 * time.Millisecond
)

// hammer is load of one protocol and family that knows when which request was made.
type hammer struct {
	stopping chan struct{}
	running  sync.WaitGroup

	mu       sync.Mutex
	requests []request
}

type request struct {
	begun  time.Time
	took   time.Duration
	server string
	err    error
}

func (c *container) hammer(proto string, to netip.AddrPort) *hammer {
	h := &hammer{stopping: make(chan struct{})}
	for range clients {
		h.running.Go(func() {
			for {
				r := request{begun: time.Now()}
				r.server, r.err = c.askOnce(proto, to)
				r.took = time.Since(r.begun)
				h.mu.Lock()
				h.requests = append(h.requests, r)
				h.mu.Unlock()
				select {
				case <-h.stopping:
					return
				case <-time.After(rest):
				}
			}
		})
	}
	return h
}

// askOnce is ask from a port that nobody else has: datagrams to sockets that share one may meet the other.
func (c *container) askOnce(proto string, to netip.AddrPort) (server string, err error) {
	var raw net.Conn
	if err := c.try(func() (err error) {
		raw, err = net.DialTimeout(proto, to.String(), patience)
		return err
	}); err != nil {
		return "", err
	}
	defer raw.Close()
	a, err := (&conn{raw, bufio.NewReader(raw)}).ask()
	if err != nil {
		return "", fmt.Errorf("from %s: %w", raw.LocalAddr(), err)
	}
	return a.Server, nil
}

// end stops the load and returns all its requests.
func (h *hammer) end() []request {
	close(h.stopping)
	h.running.Wait()
	return h.requests
}

// since returns who answered requests that were begun after a time.
func (h *hammer) since(begin time.Time) map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]int)
	for _, r := range h.requests {
		if r.err == nil && r.begun.After(begin) {
			out[r.server]++
		}
	}
	return out
}

// ejecting starts a service of three containers and a client.
func ejecting(t *testing.T, extra ...string) (n *node, servers [3]*container, stop func(), client *container) {
	n = newNode(t, extra...)
	n.writeServices("web.yaml", service("web", vip(10), "outlier: {enabled: true}"))
	n.start()
	network := n.bridged(conf{"services": []string{"web"}})
	for i := range servers {
		servers[i] = n.container(t, string(rune('a'+i)), network)
		end := servers[i].serve(targetPort)
		if i == 0 {
			stop = end
		}
	}
	client = n.container(t, "client", n.bridged())
	n.states(t, felt, inState("active", servers[:]...))
	expectServers(t, client, front(vip(10), v4), servers[0].name, servers[1].name, servers[2].name)
	return n, servers, stop, client
}

// expectGone waits until the first server's IPv4 address, and nothing else, is out since it failed.
func (n *node) expectGone(t *testing.T, servers [3]*container, failed time.Time) {
	t.Helper()
	want := inState("active", servers[:]...)
	want[servers[0].addr[v4]] = "unhealthy"
	n.states(t, gone-time.Since(failed), want)
	t.Logf("out after %v", time.Since(failed).Round(time.Millisecond))
}

// expectProblem looks for the reason of the ejection in what somebody should look at.
func (n *node) expectProblem(t *testing.T, server *container, reason string) {
	t.Helper()
	text := strings.Join(list[statusRow](n, "status").Problems, "\n")
	if want := server.addr[v4].String() + " is ejected since "; !strings.Contains(text, want) || !strings.Contains(text, reason) {
		t.Errorf("problems %q, want %q and %q", text, want, reason)
	}
}

// ejections returns a metric of the service.
func (n *node) ejections(t *testing.T, reason string) (count int) {
	t.Helper()
	_, text, err := n.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(text, fmt.Sprintf("\ntclb_outlier_ejections_total{service=\"web\",reason=%q} ", reason))
	if _, err := fmt.Sscan(after, &count); err != nil {
		t.Fatalf("no ejections by %s: %v", reason, err)
	}
	return count
}

// expectBack waits until a server gets its share of the requests, for a second, from now on.
func (h *hammer) expectBack(t *testing.T, within time.Duration, server, other string) {
	t.Helper()
	time.Sleep(gone)
	eventually(t, within, server+" serves again", func() error {
		got := h.since(time.Now().Add(-gone))
		if got[server] < got[other]/2 || got[server] == 0 {
			return fmt.Errorf("requests were answered by %v", got)
		}
		return nil
	})
}

// expectFew checks that requests failed only if they were begun around the time something did, and few.
func expectFew(t *testing.T, requests []request, from, to time.Time, most int) {
	t.Helper()
	failed, slowest := 0, time.Duration(0)
	for _, r := range requests {
		slowest = max(slowest, r.took)
		if r.err == nil {
			continue
		}
		failed++
		if r.begun.Before(from) || r.begun.After(to) {
			t.Errorf("request begun %v after the server failed: %v", r.begun.Sub(from), r.err)
		}
	}
	t.Logf("%d of %d requests failed, the slowest took %v", failed, len(requests), slowest)
	if failed > most {
		t.Errorf("%d requests failed, want at most %d", failed, most)
	}
	if len(requests) < 1000 {
		t.Errorf("only %d requests: that was no load", len(requests))
	}
}

func TestServerThatRefusesIsEjectedAndTriedAgain(t *testing.T) {
	eachMode(t, testServerThatRefusesIsEjectedAndTriedAgain)
}

func testServerThatRefusesIsEjectedAndTriedAgain(t *testing.T, mode string) {
	n, servers, stop, client := ejecting(t, mode)
	load := client.hammer("tcp", front(vip(10), v4))
	time.Sleep(time.Second)
	failed := time.Now()
	stop()
	stopped := time.Now()
	n.expectGone(t, servers, failed)
	n.expectProblem(t, servers[0], "refused")

	// The trial costs one client a second, and nobody an answer.
	eventually(t, ejection+3*gone, "the first trial fails", func() error {
		if got := n.ejections(t, "refused"); got < 2 {
			return fmt.Errorf("%d ejections", got)
		}
		return nil
	})
	servers[0].serve(targetPort)
	load.expectBack(t, 2*ejection+4*gone, servers[0].name, servers[1].name)
	n.states(t, felt, inState("active", servers[:]...))
	// What was being answered when the sockets were closed is lost.
	expectFew(t, load.end(), failed.Add(-patience), stopped, clients)
	if got := n.ejections(t, "unanswered"); got != 0 {
		t.Errorf("%d ejections because SYNs were unanswered", got)
	}
}

func TestServerThatFallsSilentIsEjectedAndTriedAgain(t *testing.T) {
	eachMode(t, testServerThatFallsSilentIsEjectedAndTriedAgain)
}

func testServerThatFallsSilentIsEjectedAndTriedAgain(t *testing.T, mode string) {
	n, servers, _, client := ejecting(t, mode)
	load := client.hammer("tcp", front(vip(10), v4))
	time.Sleep(time.Second)
	failed := time.Now()
	whom := client.addr[v4]
	if mode == inUserspace { // a server sees the node
		whom = netip.MustParseAddr("198.51.100.1")
	}
	silence := fmt.Sprintf("blackhole %s/32", whom)
	servers[0].ip("route add " + silence)
	silent := time.Now()
	n.expectGone(t, servers, failed)
	n.expectProblem(t, servers[0], "unanswered")
	servers[0].ip("route del " + silence)
	load.expectBack(t, ejection+4*gone, servers[0].name, servers[1].name)
	n.states(t, felt, inState("active", servers[:]...))
	// Who asked when it fell silent is answered when its packets are repeated, by this server or another.
	expectFew(t, load.end(), failed.Add(-patience), silent, clients)
}

func TestServerThatRefusesDatagramsIsEjected(t *testing.T) {
	eachMode(t, testServerThatRefusesDatagramsIsEjected)
}

func testServerThatRefusesDatagramsIsEjected(t *testing.T, mode string) {
	// Each request is a flow, and where the proxy carries them none gives way to another.
	n, servers, stop, client := ejecting(t, mode, "conntrack: {maxEntries: 131072}")
	load := client.hammer("udp", front(vip(10), v4))
	time.Sleep(time.Second)
	failed := time.Now()
	stop()
	n.expectGone(t, servers, failed)
	out := time.Now()
	n.expectProblem(t, servers[0], "datagrams refused")
	servers[0].serve(targetPort)
	load.expectBack(t, ejection+4*gone, servers[0].name, servers[1].name)
	// Of datagrams each that meets nobody is lost.
	expectFew(t, load.end(), failed.Add(-patience), out, int(out.Sub(failed)/rest)*clients)
}

// Somebody who switches it off does not wait for ejections to end.
func TestEjectionEndsWithItsSetting(t *testing.T) { eachMode(t, testEjectionEndsWithItsSetting) }

func testEjectionEndsWithItsSetting(t *testing.T, mode string) {
	n, servers, stop, client := ejecting(t, mode)
	load := client.hammer("tcp", front(vip(10), v4))
	time.Sleep(time.Second)
	failed := time.Now()
	stop()
	n.expectGone(t, servers, failed)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.states(t, felt, inState("active", servers[:]...))
	time.Sleep(gone)
	n.states(t, 0, inState("active", servers[:]...))
	load.end()
}
