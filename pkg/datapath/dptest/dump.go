package dptest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Dump returns everything in the maps as text, sorted, one entry a line. Tables are shown by how many
// slots each backend serves, not where they lie, so that equal maps give equal text.
func (m *Maps) Dump() string {
	var out strings.Builder
	frontends, _ := m.Frontends() // what is in memory is always there
	for _, key := range slices.SortedFunc(maps.Keys(frontends), func(a, b lb.Frontend) int {
		return cmp.Or(a.VIP.Compare(b.VIP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	}) {
		m.dumpFrontend(&out, key, frontends[key])
	}
	for id := range m.Sizes().MaxServices {
		if s, _ := m.Service(id); s != (datapath.Service{}) {
			fmt.Fprintf(&out, "service %d gen=%d base=%d affinity=%s factor=%g established=%s syn=%s fin=%s udp=%s stream=%s\n",
				id, s.Gen, s.BaseGen, s.Affinity, s.LoadFactor, s.Timeouts.TCPEstablished, s.Timeouts.TCPSyn,
				s.Timeouts.TCPFin, s.Timeouts.UDP, s.Timeouts.UDPStream)
		}
	}
	backends, _ := m.Backends()
	for _, id := range slices.Sorted(maps.Keys(backends)) {
		b := backends[id]
		fmt.Fprintf(&out, "backend %d %s\n", id, describe(&b))
	}
	m.dumpAllows(&out)
	return out.String()
}

func (m *Maps) dumpFrontend(out *strings.Builder, key lb.Frontend, f datapath.Frontend) {
	switch f.Kind {
	case datapath.KindVIP:
		fmt.Fprintf(out, "frontend %s vip service=%d\n", key.VIP, f.Service)
		return
	case datapath.KindBackend:
		fmt.Fprintf(out, "frontend %s backend\n", key)
		return
	}
	fmt.Fprintf(out, "frontend %s service=%d %s affinity=%t allow=%t slots=%d", key, f.Service, f.Scheduler, f.Affinity, f.Allow, f.Slots)
	share := make(map[uint32]int)
	table, err := m.ReadRegion(f.Table)
	if err != nil {
		fmt.Fprintf(out, " %v\n", err)
		return
	}
	for _, seat := range f.Unpack(table) {
		if seat >= f.Members.Len {
			fmt.Fprintf(out, " BAD-SEAT-%d", seat)
			continue
		}
		share[m.At(f.Members.Offset+seat)]++
	}
	ids := make([]uint32, 0, len(share))
	for id := range share {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		fmt.Fprintf(out, " %d:%d", id, share[id])
	}
	out.WriteString("\n")
}

// describe prints a record; a retired one is its generation.
func describe(b *datapath.Backend) string {
	if b.Protocol == 0 {
		return fmt.Sprintf("gen=%d retired", b.Gen)
	}
	flags := ""
	for _, f := range []struct {
		on   bool
		name string
	}{{b.Live, "live"}, {b.New, "new"}, {b.Local, "local"}} {
		if f.on {
			flags += " " + f.name
		}
	}
	return fmt.Sprintf("%s %s:%d zone=%d gen=%d service=%d ifindex=%d mac=%x weight=%d%s",
		b.Protocol, b.Address, b.Port, b.Zone, b.Gen, b.Service, b.Ifindex, b.MAC, b.Weight, flags)
}

func (m *Maps) dumpAllows(out *strings.Builder) {
	allows, _ := m.Allows()
	lines := make([]string, 0, len(allows))
	for k := range allows {
		lines = append(lines, fmt.Sprintf("allow service=%d %s\n", k.Service, k.Prefix))
	}
	slices.Sort(lines)
	for _, l := range lines {
		out.WriteString(l)
	}
}
