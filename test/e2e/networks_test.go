package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shaped limits both directions of a container. Rates are bits.
func shaped() conf {
	return conf{
		"type": "bandwidth", "ingressRate": shapedRate, "ingressBurst": shapedBurst,
		"egressRate": shapedRate, "egressBurst": shapedBurst,
	}
}

const (
	shapedRate  = 8_000_000
	shapedBurst = 160_000
)

// The chains in which the plugin stands, and networks of each shape.
func TestVIPIsServedOnEveryNetwork(t *testing.T) {
	t.Parallel()
	portmap := conf{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}}
	for _, shape := range []struct {
		name     string
		families []int
		entries  func(n *node, ours conf) []conf
	}{
		{"ptp", []int{v4, v6}, func(n *node, ours conf) []conf {
			return []conf{{"type": "ptp", "ipam": n.ipam(subnetsA, true)}, ours}
		}},
		{"IPv4 only", []int{v4}, func(n *node, ours conf) []conf { return []conf{n.bridge("red0", subnetsA[:1]), ours} }},
		{"IPv6 only", []int{v6}, func(n *node, ours conf) []conf { return []conf{n.bridge("red0", subnetsA[1:]), ours} }},
		{"portmap before", []int{v4, v6}, func(n *node, ours conf) []conf { return []conf{n.bridge("red0", subnetsA), portmap, ours} }},
		{"portmap after", []int{v4, v6}, func(n *node, ours conf) []conf { return []conf{n.bridge("red0", subnetsA), ours, portmap} }},
	} {
		t.Run(shape.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.writeServices("web.yaml", service("web", vip(10)))
			n.start()
			members := n.network("red", shape.entries(n, n.ours(conf{"services": []string{"web"}}))...)
			clients := n.network("red", shape.entries(n, n.ours())...)
			mapping := capability("portMappings", []conf{{"hostPort": 18080, "containerPort": targetPort, "protocol": "tcp"}})
			servers := []*container{
				n.container(t, "web0", members, mapping),
				n.container(t, "web1", members),
			}
			for _, s := range servers {
				s.serve(targetPort)
			}
			client := n.container(t, "client", clients)
			n.waitForBackends("web", 2*2*len(shape.families))
			eachWay(t, func(t *testing.T, family int, proto string) {
				to := front(vip(10), family)
				if len(shape.families) == 1 && family != shape.families[0] {
					if _, err := client.ask(proto, to); err == nil {
						t.Errorf("%s answers, although nothing has an address of its family", to)
					}
					return
				}
				expectSpread(t, client.spread(t, proto, to, 60), 60, servers[0].name, servers[1].name)
			})
			if strings.HasPrefix(shape.name, "portmap") {
				expectHostPort(t, n, servers[0])
			}
		})
	}
}

// expectHostPort asks a published port from outside.
func expectHostPort(t *testing.T, n *node, server *container) {
	t.Helper()
	outside := n.outside(t)
	for family := range families {
		got := outside.mustAsk(t, "tcp", netip.AddrPortFrom(uplink[family], 18080))
		if got.Server != server.name || got.Client.Addr() != external[family] {
			t.Errorf("published port: %+v, want %s, and client %s", got, server.name, external[family])
		}
	}
}

func TestContainersOnTwoNetworks(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	web := conf{"services": []string{"web"}}
	red := func(with ...conf) network { return n.bridged(with...) }
	blue := func(with ...conf) network {
		bridge := n.bridge("blue0", subnetsB)
		return n.network("blue", bridge, n.ours(with...))
	}
	blueWithoutDefault := func(with ...conf) network {
		return n.network("blue", conf{"type": "bridge", "bridge": "blue0", "isGateway": true, "ipam": n.ipam(subnetsB, false)}, n.ours(with...))
	}
	onRed, onBlue := n.container(t, "red", red(web)), n.container(t, "blue", blue(web))
	onBoth := n.container(t, "both", red(web))
	onBoth.attach(t, blueWithoutDefault(web), "eth1")
	client := n.container(t, "client", red())
	client.attach(t, blueWithoutDefault(), "eth1")
	onRed.serve(targetPort)
	onBlue.serve(targetPort)
	// UDP answers leave from the address that was asked only if the server sees to it.
	onBoth.serve(targetPort, onBoth.addresses()...)
	n.waitForBackends("web", 4*2*2)
	eachWay(t, func(t *testing.T, family int, proto string) {
		got := map[string]int{}
		for range 90 {
			a := client.mustAsk(t, proto, front(vip(10), family))
			if a.Client.Addr() != client.addr[family] {
				t.Fatalf("%s sees %s, want %s", a.Server, a.Client, client.addr[family])
			}
			got[a.Server]++
		}
		expectSpread(t, got, 90, onRed.name, onBlue.name, onBoth.name)
	})

	// A container that leaves one network stays a backend on the other.
	if err := onBoth.del(blueWithoutDefault(web), "eth1"); err != nil {
		t.Fatal(err)
	}
	n.waitForBackends("web", 3*2*2)
	expectSpread(t, client.spread(t, "tcp", front(vip(10), v4), 90), 90, onRed.name, onBlue.name, onBoth.name)
}

// Shaping works beside us on either side. What we deliver ourselves is exempt from it, so the
// measurement is of a direct connection.
func TestBandwidthPluginKeepsShaping(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"before", "after"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.writeServices("web.yaml", service("web", vip(10)))
			n.start()
			entries := []conf{n.bridge("red0", subnetsA), shaped(), n.ours()}
			if order == "after" {
				entries[1], entries[2] = entries[2], entries[1]
			}
			server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
			server.serve(targetPort)
			server.sink(9000)
			free := n.container(t, "free", n.bridged())
			slow := n.container(t, "slow", n.network("red", entries...))
			n.waitForBackends("web", 4)
			eachWay(t, func(t *testing.T, family int, proto string) {
				if got := slow.spread(t, proto, front(vip(10), family), 5); got[server.name] != 5 {
					t.Errorf("answers %v", got)
				}
			})
			const size = 500_000
			least := time.Duration(float64(size*8-shapedBurst) / shapedRate * float64(time.Second) * 0.8)
			if took := slow.upload(t, server.at(v4, 9000), size); took < least {
				t.Errorf("%d bytes took %v, want at least %v: shaping is lost", size, took, least)
			}
			if took := free.upload(t, server.at(v4, 9000), size); took > least/2 {
				t.Errorf("%d bytes of a container without limits took %v: the measurement says nothing", size, took)
			}
		})
	}
}

// sink takes what is sent to a TCP port, and says how much it was.
func (p *place) sink(port int) {
	p.t.Helper()
	p.do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		p.keep(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					n, _ := io.Copy(io.Discard, c)
					fmt.Fprintln(c, n)
				}()
			}
		}()
		return nil
	})
}

// upload sends size bytes to a sink and returns how long that took.
func (p *place) upload(t *testing.T, to netip.AddrPort, size int) time.Duration {
	t.Helper()
	c, err := p.dial("tcp", to, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	_, err = c.Write(bytes.Repeat([]byte{'x'}, size))
	err = errors.Join(err, c.Conn.(*net.TCPConn).CloseWrite(), c.SetReadDeadline(begin.Add(20*time.Second)))
	got, readErr := c.lines.ReadString('\n')
	if want := fmt.Sprintln(size); got != want || errors.Join(err, readErr) != nil {
		t.Fatalf("sink says %q, want %q: %v", got, want, errors.Join(err, readErr))
	}
	return time.Since(begin)
}

// A filter behind our programs runs for what is not ours.
func TestFilterBehindUsRuns(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	server.serve(9999)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	client.mustAsk(t, "udp", server.at(v4, 9999))

	passed := filterUDP(t, n, client.hostInterface("eth0"), 9999)
	if a, err := client.ask("udp", server.at(v4, 9999)); err == nil {
		t.Errorf("%+v got past the filter", a)
	}
	client.mustAsk(t, "udp", server.at(v4, targetPort)) // direct, and known to us
	if passed() == 0 {
		t.Error("the filter saw no packet of a direct flow")
	}
	for family := range families {
		client.mustAsk(t, "tcp", front(vip(10), family))
	}
}

// filterUDP puts a clsact filter on a device's ingress that drops UDP to a port, and returns how
// many packets it let pass.
func filterUDP(t *testing.T, n *node, device string, port int32) (passed func() uint64) {
	t.Helper()
	count, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { count.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(14+9, asm.Byte), // IPv4 protocol
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "pass"),
		asm.LoadAbs(14+20+2, asm.Half), // destination port
		asm.JNE.Imm(asm.R0, port, "count"),
		asm.Mov.Imm(asm.R0, 2), // TC_ACT_SHOT
		asm.Return(),
		asm.StoreImm(asm.R10, -4, 0, asm.Word).WithSymbol("count"),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, count.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("pass"), // TC_ACT_OK
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	n.do(func() error {
		l, err := netlinksafe.LinkByName(device)
		if err != nil {
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:          prog.FD(), Name: "foreign", DirectAction: true,
		})
	})
	return func() (out uint64) {
		if err := count.Lookup(uint32(0), &out); err != nil {
			t.Error(err)
		}
		return out
	}
}

func TestMacvlanIsRefusedClearly(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ip("link add parent0 type bridge")
	n.configure("parent0")
	macvlan := n.network("mac", conf{"type": "macvlan", "master": "parent0", "ipam": n.ipam(subnetsA, true)}, n.ours())
	c := n.newContainer(t, "client")
	err := c.add(macvlan, "eth0")
	var e *types.Error
	if !errors.As(err, &e) || e.Code < 100 {
		t.Fatalf("ADD: %v", err)
	}
	for _, word := range []string{"macvlan", "no host-side veth", "bridge or ptp"} {
		if !strings.Contains(e.Msg, word) {
			t.Errorf("the message does not say %q: %s", word, e.Msg)
		}
	}
	if err := c.del(macvlan, "eth0"); err != nil {
		t.Errorf("DEL after a failed ADD: %v", err)
	}
	n.expectNoAttachment(t)
}
