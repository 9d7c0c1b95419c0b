package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// localRoutes are the routes that lead VIPs to the node.
func (n *node) localRoutes() string {
	n.t.Helper()
	return n.ip("-4 route show proto 76 table all") + n.ip("-6 route show proto 76 table all")
}

// Containers join as ever, and whoever can send packets to the node reaches VIPs: containers by their default route,
// attached or not, the node itself, and hosts outside. Servers see an address of the node.
func TestUserspaceServesEverybody(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	n.strictReversePath()
	outside := n.outside(t)
	n.start() // before the containers: so the plugin knows the mode
	for i, channel := range []struct {
		entry   conf
		options []option
	}{
		{conf{"services": []string{"web"}}, nil},
		{conf{}, []option{args("TCLB_SERVICES", "other,web")}},
		{conf{}, []option{capability("aliases", map[string][]string{"red": {"web", "0123456789ab"}})}},
	} {
		n.container(t, fmt.Sprintf("web%d", i), n.bridged(channel.entry), channel.options...).serve(targetPort)
	}
	client, plain := n.container(t, "client", n.bridged(conf{"joinByName": false})), n.unattached(t, "plain")
	n.writeServices("web.yaml", service("web", vip(10)))
	n.waitForBackends("web", 3*4)
	servers := []string{n.name + "-web0", n.name + "-web1", n.name + "-web2"}
	bridge := [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:a::1")}
	for _, from := range []*place{client.place, plain.place, n.place, outside} {
		eachWay(t, func(t *testing.T, family int, proto string) {
			got := map[string]int{}
			for range 60 {
				a := from.mustAsk(t, proto, front(vip(10), family))
				if got[a.Server]++; a.Client.Addr() != bridge[family] {
					t.Fatalf("%s sees client %s, want the node's address %s", a.Server, a.Client, bridge[family])
				}
			}
			expectSpread(t, got, 60, servers...)
		})
		for family := range families {
			a, at, err := from.askUnconnected(front(vip(10), family))
			if err != nil || at != front(vip(10), family) {
				t.Errorf("unconnected UDP from %s: %+v from %s, %v", from.name, a, at, err)
			}
		}
	}
	if got := n.programs(t, client.hostInterface("eth0")); got != 0 {
		t.Errorf("%d programs are attached", got)
	}
	for _, e := range list[[]endpointRow](n, "endpoint", "list") {
		if e.Attach != "none" {
			t.Errorf("endpoint %+v", e)
		}
	}
	if routes := n.localRoutes(); strings.Count(routes, "dev lo") != 2 {
		t.Errorf("routes %s", routes)
	}
}

// A container that is its own backend reaches itself.
func TestUserspaceContainerReachesItself(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	c := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	c.serve(targetPort)
	n.waitForBackends("web", 4)
	eachWay(t, func(t *testing.T, family int, proto string) {
		if a := c.mustAsk(t, proto, front(vip(10), family)); a.Client.Addr() == c.addr[family] || a.Server != c.name {
			t.Errorf("answer %+v", a)
		}
	})
}

// Of 1000 connections that begin while a backend dies none fails: who is refused gets another one.
func TestUserspaceSecondChance(t *testing.T) {
	t.Parallel()
	p := newPool(t, 3, inUserspace)
	for i, scheduler := range schedulers {
		t.Run(scheduler, func(t *testing.T) {
			target := 9090 + i // of a server that refused nobody lately
			stop := p.servers[0].serve(target)
			for _, s := range p.servers[1:] {
				s.serve(target)
			}
			text := fmt.Sprintf("services:\n- name: more\n  scheduler: %s\n  vips: [%s]\n  ports: [{port: 90, targetPort: %d}]\n  %s\n", scheduler, vip(20)[v4], target,
				backends(p.servers[0].addr[v4], p.servers[1].addr[v4], p.servers[2].addr[v4]))
			p.applied(func() { p.writeServices("more.yaml", text) })
			got := map[string]int{}
			for i := range 1000 {
				if i == 300 {
					stop()
				}
				got[p.client.mustAsk(t, "tcp", netip.AddrPortFrom(vip(20)[v4], 90)).Server]++
			}
			if dead := got[p.servers[0].name]; dead == 0 || dead > 300 {
				t.Errorf("answers of %v", got)
			}
		})
	}
}

// conntrack list shows who is connected to whom, though a server sees the node; a flush ends it.
func TestUserspaceConntrackShowsTheClient(t *testing.T) {
	t.Parallel()
	n, servers, client := cliNode(t, inUserspace)
	eachWay(t, func(t *testing.T, family int, proto string) {
		c := client.mustDial(t, proto, front(vip(10), family), 0)
		a := client.mustHear(t, c)
		backend := servers[slices.IndexFunc(servers[:], func(s *container) bool { return s.name == a.Server })]
		want := netip.MustParseAddrPort(c.LocalAddr().String())
		rows := slices.DeleteFunc(list[[]flowRow](n, "conntrack", "list"), func(f flowRow) bool { return f.Client != want || f.Protocol != proto })
		if len(rows) != 1 {
			t.Fatalf("%d flows of %s: %+v", len(rows), want, rows)
		}
		f := rows[0]
		if f.VIP != front(vip(10), family) || f.Backend != backend.at(family, targetPort) || f.State != "established" || f.Node != n.name ||
			f.Packets < 2 || f.Bytes < 8 || f.ExpiresSeconds <= 0 {
			t.Errorf("flow %+v", f)
		}
		n.mustTclb("conntrack", "flush", "--service", "web")
		if left := list[[]flowRow](n, "conntrack", "list", "--service", "web"); len(left) > 0 {
			t.Errorf("after a flush: %+v", left)
		}
		if proto == "tcp" {
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
				t.Errorf("a flushed connection goes on: %v", err)
			}
		}
	})
}

// A drained backend keeps its connections until they end, and --wait waits for that.
func TestUserspaceDrainWaits(t *testing.T) {
	t.Parallel()
	n, servers, client := cliNode(t, inUserspace)
	var open []*conn
	for range 8 { // some on each
		c := client.mustDial(t, "tcp", front(vip(10), v4), 0)
		if client.mustHear(t, c).Server == servers[0].name {
			open = append(open, c)
		}
	}
	drained := servers[0].addr[v4].String()
	if r := n.tclb("backend", "drain", "web", drained, "--wait=300ms"); r.status != 3 {
		t.Errorf("a drain that cannot end: %+v", r)
	}
	expectServers(t, client, front(vip(10), v4), servers[1].name)
	done := make(chan result, 1)
	go func() { done <- n.tclb("backend", "drain", "web", drained, "--wait=20s") }()
	for _, c := range open {
		client.mustHear(t, c)
		reset(t, c)
	}
	if r := <-done; r.status != 0 {
		t.Errorf("a drain that ends: %+v", r)
	}
}

// Killed, the proxy leaves its routes; the next one goes on with them, and uninstall removes them.
func TestUserspaceRestartAndUninstall(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	client.mustAsk(t, "tcp", front(vip(10), v4))
	n.kill()
	if n.localRoutes() == "" {
		t.Error("no routes are left, so this tests nothing")
	}
	late := n.container(t, "late", n.bridged(conf{"services": []string{"web"}})) // the plugin goes on
	late.serve(targetPort)
	n.writeServices("web.yaml", service("web", vip(11)))
	n.start()
	expectServers(t, client, front(vip(11), v6), server.name, late.name)
	if routes := n.localRoutes(); strings.Count(routes, "dev lo") != 2 || strings.Contains(routes, vip(10)[v4].String()) {
		t.Errorf("routes %s", routes)
	}
	n.kill()
	n.mustTclb("uninstall")
	if routes := n.localRoutes(); routes != "" {
		t.Errorf("left over: routes %s", routes)
	}
	if left := files(t, n.runDir); len(left) > 0 {
		t.Errorf("left over below the run directory: %v", left)
	}
}

// A container whose DEL never comes is taken out when its interface goes, or when the next proxy looks.
func TestUserspaceReapsContainers(t *testing.T) {
	t.Parallel()
	n := newNode(t, inUserspace)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	dying, staying := n.container(t, "dying", members), n.container(t, "staying", members)
	staying.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 8)
	dying.vanish()
	n.waitForBackends("web", 4)
	expectServers(t, client, front(vip(10), v4), staying.name)
	n.stop()
	staying.vanish()
	n.start()
	n.waitForBackends("web", 0)
	eventually(t, 5*time.Second, "one container is left", func() error {
		if rows, found := list[[]endpointRow](n, "endpoint", "list"), files(t, filepath.Join(n.runDir, "endpoints")); len(rows) != 1 || len(found) != 1 {
			return fmt.Errorf("listed %+v, files %v", rows, found)
		}
		return nil
	})
}

// A node in userspace mode shares services and containers with the others. Those of others get no connections from it, and it says so.
func TestUserspaceNodeSharesServices(t *testing.T) {
	t.Parallel()
	e := newEtcd(t, "etcd9")
	a, b := e.node(t), e.node(t, inUserspace)
	a.start()
	b.start()
	onA := a.container(t, "web", a.bridged(conf{"services": []string{"web"}}))
	if r := b.put("web"); r.status != 0 {
		t.Fatalf("apply: %+v", r)
	}
	onB := b.container(t, "web", b.bridged(conf{"services": []string{"web"}}))
	onA.serve(80)
	onB.serve(80)
	a.expectOwn(t, "web", onA.addr[v4].String()+" active")
	b.expectOwn(t, "web", onB.addr[v4].String()+" active")
	vips := vipsOf(b, "web")
	eventually(t, startTime, "the other node's container is listed", func() error {
		text := strings.Join(list[statusRow](b, "status").Problems, "\n")
		if !strings.Contains(text, "backend "+a.name+"/"+onA.addr[v4].String()+" is on node "+a.name+", and userspace mode has no way to other nodes") {
			return fmt.Errorf("problems %q", text)
		}
		return nil
	})
	for range 20 {
		if got := b.mustAsk(t, "tcp", netip.AddrPortFrom(vips[0], 80)); got.Server != onB.name {
			t.Fatalf("answer %+v", got)
		}
	}
	b.writeServices("local.yaml", "services:\n"+local("local", "127.0.0.9", 8000, "127.0.0.1"))
	eventually(t, felt, "a VIP that means every node is refused", func() error {
		if text := strings.Join(list[statusRow](b, "status").Problems, "\n"); !strings.Contains(text, "since all nodes of etcd are to serve it") {
			return fmt.Errorf("problems %q", text)
		}
		return nil
	})
}

// Told to stop, the proxy takes no more connections, lets those that are there end, and removes its routes.
func TestUserspaceStopsGracefully(t *testing.T) {
	t.Parallel()
	p := newPool(t, 2, inUserspace)
	p.configure("round-robin", alike(2))
	c, _ := p.hold(t, "tcp", v4)
	other, _ := p.hold(t, "tcp", v6)
	talks := p.talkOver(t, 4)
	stopping := p.proxy
	if err := stopping.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	eventually(t, felt, "nobody listens", func() error {
		if _, err := p.client.ask("tcp", front(poolVIPs[0], v4)); err == nil {
			return fmt.Errorf("it is answered")
		}
		return nil
	})
	p.client.mustHear(t, c)
	c.Close()
	expectUnbroken(t, talks) // under load
	for _, k := range talks {
		k.c.Close()
	}
	if err := stopping.Process.Signal(os.Interrupt); err != nil { // the second ends the other one
		t.Fatal(err)
	}
	select {
	case err := <-p.exited:
		if p.proxy = nil; err != nil {
			t.Errorf("the proxy stopped with %v", err)
		}
	case <-time.After(5 * time.Second): // it would wait for longer without
		t.Fatal("the proxy waits after the second signal")
	}
	_ = other.SetReadDeadline(time.Now().Add(patience))
	if _, err := other.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || os.IsTimeout(err) {
		t.Errorf("a connection that did not end is not reset: %v", err)
	}
	if routes := p.localRoutes(); routes != "" {
		t.Errorf("left over: routes %s", routes)
	}
	if mode, err := os.ReadFile(filepath.Join(p.runDir, "mode")); err != nil || string(mode) != "userspace\n" {
		t.Errorf("the plugin is told %q, %v", mode, err)
	}
}
