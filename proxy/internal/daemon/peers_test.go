package daemon

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

func TestPeersAreAllNodesButThisOne(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Name, cfg.Tunnel.MTU = "a", 1400
	address := netip.MustParseAddr
	cfg.Nodes = []config.Peer{
		{Name: "a", Address: address("192.0.2.1")},
		{Name: "b", Address: address("192.0.2.2"), Subnets: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}},
		{Name: "c", Address: address("2001:db8::3"), MAC: "02:00:00:00:00:0c"},
		{Name: "alias", Address: address("2001:db8::1")},
	}
	own := ownAddresses(cfg, [2]netip.Addr{address("203.0.113.9"), address("2001:db8::1")})
	if want := [2]netip.Addr{address("192.0.2.1"), address("2001:db8::1")}; own != want {
		t.Errorf("own addresses %v, want %v: the list says how others know this node", own, want)
	}
	got, way := listPeers(cfg, cfg.Nodes, own)
	if len(got) != 2 || got[0].Name != "b" || got[1].Name != "c" {
		t.Fatalf("peers %+v", got)
	}
	if b := got[0]; b.MAC != overlay.MAC(address("192.0.2.2")) || b.SNAT != datapath.SNATCheck || b.MTU != 0 || !b.DSR {
		t.Errorf("b is %+v", b)
	}
	// Neither address is one of the machine that the test runs on.
	if way == nil || !strings.Contains(way.Error(), "node b: find the way to 192.0.2.2: ") {
		t.Errorf("the ways are %v", way)
	}
	if c := got[1]; c.MAC != [6]byte{2, 0, 0, 0, 0, 12} || c.SNAT != datapath.SNATInside || c.DSR { // without tclb
		t.Errorf("c is %+v", c)
	}
}

func TestTranslationFollowsTheWord(t *testing.T) {
	some := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}
	for _, c := range []struct {
		word    string
		subnets []netip.Prefix
		want    datapath.SNATMode
	}{
		{"auto", some, datapath.SNATCheck},
		{"auto", nil, datapath.SNATInside},
		{"always", nil, datapath.SNATAlways},
		{"always", some, datapath.SNATAlways},
		{"never", nil, datapath.SNATNever},
	} {
		if got := snatMode(c.word, c.subnets); got != c.want {
			t.Errorf("%s with %v: %v, want %v", c.word, c.subnets, got, c.want)
		}
	}
}

func TestTranslatedPortsAreNotTheHostsOwn(t *testing.T) {
	for _, c := range []struct{ low, high, first, last uint16 }{
		{32768, 60999, 1024, 32767},
		{1024, 40000, 40001, 65535},
		{1024, 65535, 1024, 65535}, // none are left
		{2000, 65535, 1024, 1999},
	} {
		if first, last := translatedPorts(c.low, c.high); first != c.first || last != c.last {
			t.Errorf("%d to %d are the host's: %d to %d, want %d to %d", c.low, c.high, first, last, c.first, c.last)
		}
	}
}

// noNodes are the maps of a node that never had others.
type noNodes struct{}

func (noNodes) Nodes() (map[uint16]datapath.Node, error) { return map[uint16]datapath.Node{}, nil }
func (noNodes) PutNode(uint16, datapath.Node) error      { return nil }
func (noNodes) DeleteNode(uint16) error                  { return nil }
func (noNodes) PutSubnet(datapath.SubnetKey) error       { return nil }
func (noNodes) DeleteSubnet(datapath.SubnetKey) error    { return nil }
func (noNodes) Subnets() (map[datapath.SubnetKey]struct{}, error) {
	return map[datapath.SubnetKey]struct{}{}, nil
}

func TestBackendsOfALostNodeFail(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Name, cfg.Tunnel.MTU = "a", 1400
	cfg.Nodes = []config.Peer{{Name: "b", Address: netip.MustParseAddr("127.0.0.2")}}
	p := &kernelMode{proxy: &proxy{peers: newPeers(noNodes{}), store: state.New("a", t.TempDir(), lb.Timeouts{}, slog.New(slog.DiscardHandler))}}
	p.mode = p
	p.Log = slog.New(slog.DiscardHandler)
	p.reach = p.newProber(p.noteReach)
	p.peers.own.Store(&[2]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	p.store.SetEndpoints(nil)
	p.store.SetServices([]state.Definition{{Spec: lb.Service{
		Name: "web", VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.100")},
		Backends: []lb.Backend{
			{Address: netip.MustParseAddr("198.51.100.1"), Node: "b", Weight: 1},
			{Address: netip.MustParseAddr("198.51.100.2"), Node: "nobody", Weight: 1},
		},
	}}})
	expect := func(what string, serves bool, st lb.State) {
		t.Helper()
		b := p.store.Snapshot().Service("web").Backends
		if b[0].Serves() != serves || b[0].State != st {
			t.Errorf("%s: the backend on b is %v and serves %v", what, b[0].State, b[0].Serves())
		}
		if b[1].Placed() || b[1].Serves() {
			t.Errorf("%s: the backend on a node that nobody knows serves", what)
		}
	}
	expect("before b is known", false, lb.Active)
	if err := p.putPeers(cfg); err != nil {
		t.Fatal(err)
	}
	expect("at first", true, lb.Active)
	p.setLost(map[string]bool{"b": true})
	expect("while it is lost", false, lb.Unhealthy)
	if err := p.putPeers(cfg); err != nil {
		t.Fatal(err)
	}
	expect("still", false, lb.Unhealthy)
	p.setLost(nil)
	expect("when it is back", true, lb.Active)
}

// A prober that kept the address of the start would believe all nodes lost.
func TestProbesFollowTheHairpinAddress(t *testing.T) {
	p := &kernelMode{proxy: &proxy{}}
	p.config.Store(config.Default())
	if got := p.hairpin(); got != [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:7c1b::1")} {
		t.Errorf("by default %v", got)
	}
	cfg, findings := config.Parse("tclb.yaml", []byte("datapath: {hairpinAddress: [169.254.88.1]}\n"))
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	p.config.Store(cfg)
	if got := p.hairpin(); got != [2]netip.Addr{netip.MustParseAddr("169.254.88.1"), netip.MustParseAddr("fd00:7c1b::1")} {
		t.Errorf("after a reload %v", got)
	}
}

func TestANodeOfAFamilyThatThisOneHasNotIsUnreachable(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Name, cfg.Tunnel.MTU = "a", 1400
	cfg.Nodes = []config.Peer{{Name: "four", Address: netip.MustParseAddr("127.0.0.2")}, {Name: "six", Address: netip.MustParseAddr("2001:db8::6")}}
	p := &kernelMode{proxy: &proxy{peers: newPeers(noNodes{}), store: state.New("a", t.TempDir(), lb.Timeouts{}, slog.New(slog.DiscardHandler))}}
	p.mode = p
	p.Log = slog.New(slog.DiscardHandler)
	p.reach = p.newProber(p.noteReach)
	p.node.Store(&view.Node{Name: "a", Reachable: true})
	p.peers.own.Store(&[2]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	p.store.SetEndpoints(nil)
	p.store.SetServices(nil)
	if err := p.putPeers(cfg); err == nil || !strings.Contains(err.Error(), "node six: this node has no address of the family") {
		t.Errorf("the ways are %v", err)
	}
	known := p.store.Snapshot().Nodes
	if !known["four"].Reachable || known["six"].Reachable {
		t.Errorf("the state knows %+v", known)
	}
	for _, n := range p.Nodes() {
		if n.Reachable == (n.Name == "six") {
			t.Errorf("%s is reachable: %v", n.Name, n.Reachable)
		}
	}
}

func TestTheHostAsksByAddressesThatItHas(t *testing.T) {
	address := netip.MustParseAddr
	found := [2]netip.Addr{address("192.0.2.1"), address("2001:db8::1")}
	local := []netip.Addr{address("192.0.2.1"), address("192.0.2.2"), address("2001:db8::1")}
	for _, c := range []struct{ own, want [2]netip.Addr }{
		{found, found},
		{[2]netip.Addr{address("192.0.2.2"), address("2001:db8::1")}, [2]netip.Addr{address("192.0.2.2"), address("2001:db8::1")}},
		{[2]netip.Addr{address("192.0.2.9"), address("2001:db8::1")}, found},
		{[2]netip.Addr{address("192.0.2.9")}, [2]netip.Addr{address("192.0.2.1")}},
	} {
		if got := sourceAddresses(c.own, found, local); got != c.want {
			t.Errorf("known by %v: %v, want %v", c.own, got, c.want)
		}
	}
}
