package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// etcdServer is a real etcd in a place of its own, with a cable to each node.
type etcdServer struct {
	*place
	dir    string
	cmd    *exec.Cmd
	cables int
}

func newEtcd(t *testing.T, name string) *etcdServer {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Fatal("etcd is missing: apt-get install etcd-server, or run make e2e")
	}
	e := &etcdServer{place: newPlace(t, name), dir: filepath.Join(workDir, name)}
	e.launch()
	t.Cleanup(e.kill)
	return e
}

// launch runs the server on what it had on disk.
func (e *etcdServer) launch() {
	e.t.Helper()
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	e.cmd = exec.Command("etcd", "--data-dir", e.dir, "--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error")
	if err := e.start(e.cmd); err != nil {
		e.t.Fatal(err)
	}
	eventually(e.t, startTime, "etcd listens", func() error {
		return e.try(func() error {
			c, err := net.Dial("tcp", "127.0.0.1:2379")
			if err == nil {
				err = c.Close()
			}
			return err
		})
	})
}

func (e *etcdServer) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}

// node makes a node that uses the server; extra lines are added to its tclb.yaml.
func (e *etcdServer) node(t *testing.T, extra ...string) *node {
	t.Helper()
	n := newNode(t)
	e.cables++
	theirs, ours := fmt.Sprintf("192.0.2.%d", 4*e.cables+1), fmt.Sprintf("192.0.2.%d", 4*e.cables+2)
	join(e.place, fmt.Sprintf("to%d", e.cables), n.place, "up0", []string{theirs + "/30"}, []string{ours + "/30"})
	n.configureProxy(append(extra, "vipPool: [10.96.0.0/16]", "etcd: {endpoints: ["+theirs+":2379], leaseTTL: 2s, restartGrace: 30s}")...)
	text, err := os.ReadFile(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.write(n.cfg, strings.Replace(string(text), "node: {name: "+n.name+"}", "node: {name: "+n.name+", address: "+ours+"}", 1))
	n.errorsAreOK = true // that etcd is away is one
	return n
}

// expectOwn waits until a node lists exactly these backends of its own, as ADDRESS state.
func (n *node) expectOwn(t *testing.T, service string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, startTime, fmt.Sprintf("%s lists %q", n.name, want), func() error {
		rows, err := tryList[[]backendRow](n, "backend", "list", service)
		var got []string
		for _, r := range rows {
			if r.Node == n.name {
				got = append(got, r.Address+" "+r.State)
			}
		}
		slices.Sort(got)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// put applies a service that its members alone serve.
func (n *node) put(service string) result {
	n.t.Helper()
	file := filepath.Join(n.dir, "put.yaml")
	n.write(file, "services:\n- {name: "+service+", ports: [{port: 80}]}\n")
	return n.tclb("service", "apply", "-f", file)
}

// What nodes tell each other is tested with a real etcd in proxy/internal/cluster; here, what users type and see.
func TestNodesShareThroughEtcd(t *testing.T) {
	t.Parallel()
	e := newEtcd(t, "etcd1")
	a, b := e.node(t), e.node(t)
	a.start()
	b.start()
	joins := conf{"services": []string{"web"}}
	onA := a.container(t, "web", a.bridged(joins)).addr[v4].String()
	onB := b.container(t, "web", b.bridged(joins)).addr[v4].String()
	if r := a.put("web"); r.status != 0 {
		t.Fatalf("apply: %+v", r)
	}
	a.expectOwn(t, "web", onA+" active")
	b.expectOwn(t, "web", onB+" active")
	if x, y := vipsOf(a, "web"), vipsOf(b, "web"); len(x) != 1 || !slices.Equal(x, y) {
		t.Errorf("VIPs %s and %s", x, y)
	}
	b.mustTclb("backend", "drain", "web", a.name+"/"+onA)
	a.expectOwn(t, "web", onA+" draining")

	// Without etcd everything stays, also over a restart, and a container that joins serves at once.
	e.kill()
	a.stop()
	a.start()
	more := a.container(t, "more", a.bridged(joins)).addr[v4].String()
	a.expectOwn(t, "web", onA+" draining", more+" active")
	if r := a.put("late"); r.status != 1 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "connection refused") {
		t.Errorf("apply without etcd: %+v", r)
	}
	if status := a.mustTclb("status"); !strings.Contains(status, "Etcd:           not connected: ") {
		t.Errorf("status without etcd:\n%s", status)
	}
	b.mustTclb("backend", "drain", "web", onB)
	b.mustTclb("backend", "undrain", "web", a.name+"/"+onA)
	a.expectOwn(t, "web", onA+" draining", more+" active") // it cannot know
	e.launch()
	a.expectOwn(t, "web", onA+" active", more+" active")
	b.expectOwn(t, "web", onB+" draining")

	// A file wins on its node, and only there.
	a.writeServices("own.yaml", "services:\n- {name: web, vips: [10.96.1.1], ports: [{port: 80}]}\n")
	eventually(t, startTime, "the file wins", func() error {
		if v := vipsOf(a, "web"); len(v) != 1 || v[0].String() != "10.96.1.1" {
			return fmt.Errorf("VIPs %s", v)
		}
		return nil
	})
	if r := a.put("web"); r.status != 1 || !strings.Contains(r.stderr, "own.yaml") {
		t.Errorf("apply over a file: %+v", r)
	}
	b.mustTclb("service", "delete", "web")
	if s := list[[]serviceRow](b, "service", "list"); len(s) != 0 {
		t.Errorf("services after the delete: %+v", s)
	}
	if s := list[[]serviceRow](a, "service", "list"); len(s) != 1 {
		t.Errorf("the file's service is gone: %+v", s)
	}
}

func vipsOf(n *node, service string) []netip.Addr {
	n.t.Helper()
	return list[[]serviceRow](n, "service", "get", service)[0].VIPs
}
