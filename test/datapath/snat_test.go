package datapath

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestWhoseAddressMayBeThereTooGoesUnderThisNodes(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		vip := netip.AddrPortFrom(vips[family], servicePort)
		port := uint16(40000)
		goes := func(mode datapath.SNATMode, under bool) {
			t.Helper()
			w.node(1, 0, mode)
			port++
			client := netip.AddrPortFrom(w.client.addr[family], port)
			verdict, out := w.fromContainer(w.client, ask(client, vip, proto))
			own := out.Src.Addr() == snats[family] && out.Src.Port() >= 61000
			if verdict != redirect || own != under || (!under && out.Src != client) {
				t.Errorf("mode %d: verdict %d for %v", mode, verdict, out)
			}
			if verdict, back := w.send(comesFrom(1), w.abroad.tunnel, answerTo(out)); verdict != redirect || back.Dst != client || back.Src != vip {
				t.Errorf("mode %d: verdict %d for %v", mode, verdict, back)
			}
		}
		goes(datapath.SNATNever, false)
		goes(datapath.SNATAlways, true)
		goes(datapath.SNATInside, true)
		goes(datapath.SNATCheck, false)
		around := func(node uint16, bits int) datapath.SubnetKey {
			return datapath.SubnetKey{Node: node, Prefix: netip.PrefixFrom(w.client.addr[family], bits).Masked()}
		}
		whole := w.client.addr[family].BitLen()
		w.check(w.d.PutSubnet(around(2, whole-8)))
		goes(datapath.SNATCheck, false)
		w.check(w.d.PutSubnet(around(1, whole-8)))
		goes(datapath.SNATCheck, true)
		goes(datapath.SNATNever, false)
		w.check(w.d.DeleteSubnet(around(1, whole-8)))
		w.check(w.d.PutSubnet(datapath.SubnetKey{Node: 1, Prefix: netip.PrefixFrom(elsewhere(1).addr[family], whole-8).Masked()}))
		goes(datapath.SNATCheck, false)
	})
}

// A client outside is not in a subnet that nobody knows of.
func TestClientsOutsideKeepTheirAddressWhereSubnetsAreUnknown(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		for mode, under := range map[datapath.SNATMode]bool{datapath.SNATInside: false, datapath.SNATAlways: true} {
			w.node(1, 0, mode)
			known, err := w.d.Nodes()
			if err != nil || known[1].SNAT != mode {
				t.Errorf("mode %d is read as %d, %v", mode, known[1].SNAT, err)
			}
			s := visit(family, proto, 40000+uint16(mode))
			out := w.decode(w.carry(w.fromOutside(), s).seen)
			if own := out.Src.Addr() == snats[family]; own != under || !under && out.Src != s.Src {
				t.Errorf("mode %d: %v", mode, out)
			}
			host := ask(netip.AddrPortFrom(outside().addr[family], 40010+uint16(mode)), s.Dst, proto)
			if _, out := w.send(datapath.FromHost, w.host, host); out.Src.Addr() != snats[family] {
				t.Errorf("mode %d, from the host: %v", mode, out)
			}
		}
	})
}

// The range is as long as it is: who finds no port in it is told nothing, and counted.
func TestPortsOfThisNodesAddressRunOut(t *testing.T) {
	eachAbroad(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		w.away(1, elsewhere(1))
		w.node(1, 0, datapath.SNATAlways)
		w.abroad.settings.SNATMin, w.abroad.settings.SNATMax = 61000, 61001
		w.settings(datapath.Settings{AntiSpoof: true})
		vip := netip.AddrPortFrom(vips[family], servicePort)
		before, taken := w.drops("no-port"), map[uint16]bool{}
		for port := uint16(40000); len(taken) < 2; port++ {
			if verdict, out := w.fromContainer(w.client, ask(netip.AddrPortFrom(w.client.addr[family], port), vip, proto)); verdict == redirect {
				taken[out.Src.Port()] = true
			}
			if port == 40100 {
				t.Fatal("two ports are more than enough for two flows")
			}
		}
		if !taken[61000] || !taken[61001] {
			t.Errorf("ports %v", taken)
		}
		early := w.drops("no-port") - before // by bad luck
		pairs := len(w.pairs())
		for port := range uint16(5) {
			if verdict, out := w.fromContainer(w.client, ask(netip.AddrPortFrom(w.client.addr[family], 50000+port), vip, proto)); verdict != drop {
				t.Errorf("verdict %d for %v", verdict, out)
			}
		}
		if n := w.drops("no-port") - before - early; n != 5 || len(w.pairs()) != pairs {
			t.Errorf("%d drops, %d pairs, %d before", n, len(w.pairs()), pairs)
		}
		w.assertWhole()
	})
}
