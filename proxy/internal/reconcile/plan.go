package reconcile

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// change is what one service needs: the difference between what is wanted and what the maps hold.
type change struct {
	svc  *service
	want *state.Service

	ids       []uint32 // of the backends wanted, all ports
	writeIDs  []uint32 // records that differ
	writes    []datapath.Backend
	fresh     []uint32 // ids given to something new
	retire    []uint32
	record    datapath.Service
	built     [2]built // by family
	tables    [2]tables
	groups    map[groupKey]uint32
	unplaced  [2]bool // no room for the tables: those of before stay
	baseMade  bool    // a base was made anew, its seats mean something else
	frontends map[lb.Frontend]datapath.Frontend
	keys      []lb.Frontend // all VIP keys wanted
	direct    []lb.Frontend
	allow     []datapath.AllowKey

	errs   []error
	failed bool // its backends or its record could not be written: frontends stay as they are
}

func (c *change) fail(err error) { c.errs = append(c.errs, err) }

// backendKey is what a backend id stands for inside a service.
type backendKey struct {
	address  netip.Addr
	port     uint16
	protocol lb.Protocol
	zone     uint16
}

func keyOf(b *datapath.Backend) backendKey {
	return backendKey{b.Address, b.Port, b.Protocol, b.Zone}
}

func newChange(svc *service, want *state.Service) *change {
	return &change{svc: svc, want: want, tables: svc.tables, groups: make(map[groupKey]uint32)}
}

// plan works out what a service needs, once its tables are built. It writes these into regions that
// nothing points to yet, and nothing else.
func (r *Reconciler) plan(c *change) {
	ids := r.planBackends(c)
	for family := range c.tables {
		r.planTables(c, family, &c.built[family], ids)
	}
	c.built = [2]built{} // changes are kept to the end of the pass
	r.planRecord(c)
	r.planAllow(c)
	r.planFrontends(c)
	r.planDirect(c, ids)
}

// planBackends finds or makes an id for every backend and target port.
func (r *Reconciler) planBackends(c *change) map[backendKey]uint32 {
	have := make(map[backendKey]uint32, len(c.svc.ids))
	for _, id := range c.svc.ids {
		have[keyOf(&r.backends[id])] = id
	}
	ids := make(map[backendKey]uint32, len(c.want.Backends)*len(c.want.Spec.Ports))
	resort := resorts(c.want.Backends)
	for i := range c.want.Backends {
		b := &c.want.Backends[i]
		if !b.Placed() {
			continue
		}
		takesNew := resort[familyOf(b.Address)].Takes(b)
		for _, p := range c.want.Spec.Ports {
			k := backendKey{address: b.Address, port: c.want.Spec.TargetPort(p, b.Backend), protocol: p.Protocol, zone: b.Zone}
			if _, done := ids[k]; done {
				continue
			}
			id, old := have[k]
			if !old {
				var err error
				if id, err = r.backendIDs.get(r.now()); err != nil {
					c.fail(fmt.Errorf("number backend %s: %w", netip.AddrPortFrom(k.address, k.port), err))
					continue
				}
			}
			delete(have, k)
			ids[k] = id
			c.ids = append(c.ids, id)
			record := backendRecord(c.svc.id, k, b, takesNew)
			record.Group = r.planGroup(c, groupOf(familyOf(b.Address), p))
			r.planBackend(c, id, !old || r.leaves(id, b, &record), record)
		}
	}
	for _, id := range have {
		c.retire = append(c.retire, id)
	}
	slices.Sort(c.retire)
	return ids
}

// resorts returns who takes new flows, by family.
func resorts(backends []state.Backend) [2]state.Resort {
	return [2]state.Resort{state.ResortOf(backends, true), state.ResortOf(backends, false)}
}

func backendRecord(service uint32, k backendKey, b *state.Backend, takesNew bool) datapath.Backend {
	return datapath.Backend{
		Address:  k.address,
		Port:     k.port,
		Protocol: k.protocol,
		Zone:     k.zone,
		Service:  service,
		Ifindex:  b.Ifindex,
		MAC:      b.MAC,
		Live:     true,
		New:      takesNew,
		Local:    b.Local(),
		Trial:    b.Trial,
		Weight:   uint32(b.Weight),
		Owner:    b.Owner,
	}
}

// leaves says whether the flows of a backend are to go to others with their next packet: those of UDP,
// when its health checks begin to fail. Nobody tells a UDP client that its server is gone, and what
// it sends from one port would be lost for as long as it goes on sending. A TCP flow could not go
// on elsewhere; its ends notice by themselves, and one whose backend only looked dead goes on.
func (r *Reconciler) leaves(id uint32, b *state.Backend, want *datapath.Backend) bool {
	return want.Protocol == lb.UDP && b.Failed && r.recordOf(id).New && !want.New
}

// planBackend compares one record. A backend behind another interface, or with another MAC address, is
// another container at the same address: flows of the one before must not reach it.
func (r *Reconciler) planBackend(c *change, id uint32, anew bool, want datapath.Backend) {
	have := r.recordOf(id)
	want.Gen = have.Gen
	if anew || have.Ifindex != want.Ifindex || have.MAC != want.MAC {
		want.Gen = nextGen(have.Gen)
		c.fresh = append(c.fresh, id)
	}
	if want != have {
		c.writeIDs = append(c.writeIDs, id)
		c.writes = append(c.writes, want)
	}
}

// nextGen never returns 0, which says that an id was never used.
func nextGen(gen uint32) uint32 { return max(gen+1, 1) }

// recordOf returns what the maps hold under a backend id.
func (r *Reconciler) recordOf(id uint32) datapath.Backend {
	if int(id) < len(r.backends) {
		return r.backends[id]
	}
	return datapath.Backend{}
}

// setRecord notes what was written under a backend id.
func (r *Reconciler) setRecord(id uint32, b datapath.Backend) {
	if int(id) >= len(r.backends) {
		r.backends = append(r.backends, make([]datapath.Backend, int(id)+1-len(r.backends))...)
	}
	r.backends[id] = b
}

// planRecord fills the service's own record.
func (r *Reconciler) planRecord(c *change) {
	spec := &c.want.Spec
	c.record = datapath.Service{
		Gen:        max(c.svc.record.Gen, 1),
		Timeouts:   mergeTimeouts(spec.Timeouts, r.timeouts),
		LoadFactor: math.Round(spec.BoundedLoad*1024) / 1024, // as the maps hold it
		BaseGen:    c.svc.record.BaseGen,
	}
	if c.svc.applied == nil && len(c.svc.keys) == 0 {
		c.record.Gen = nextGen(c.svc.record.Gen)
	}
	if spec.Affinity.Mode != lb.AffinityNone {
		c.record.Affinity = spec.Affinity.Timeout
	}
	if c.baseMade {
		c.record.BaseGen++
	}
}

func mergeTimeouts(t, node lb.Timeouts) lb.Timeouts {
	set := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	set(&t.TCPEstablished, node.TCPEstablished)
	set(&t.TCPSyn, node.TCPSyn)
	set(&t.TCPFin, node.TCPFin)
	set(&t.UDP, node.UDP)
	set(&t.UDPStream, node.UDPStream)
	return t
}

// sameRecord compares service records. The maps hold times in ticks of a millisecond.
func sameRecord(a, b datapath.Service) bool {
	return a.Gen == b.Gen && a.BaseGen == b.BaseGen && a.LoadFactor == b.LoadFactor &&
		near(a.Affinity, b.Affinity) && sameTimeouts(a.Timeouts, b.Timeouts)
}

func sameTimeouts(a, b lb.Timeouts) bool {
	return near(a.TCPEstablished, b.TCPEstablished) && near(a.TCPSyn, b.TCPSyn) && near(a.TCPFin, b.TCPFin) &&
		near(a.UDP, b.UDP) && near(a.UDPStream, b.UDPStream)
}

func near(a, b time.Duration) bool { return (a == 0) == (b == 0) && (a-b).Abs() < 2*time.Millisecond }

func (r *Reconciler) planAllow(c *change) {
	for _, p := range c.want.Spec.Allow {
		k := datapath.AllowKey{Service: c.svc.id, Prefix: p.Masked()}
		if !slices.Contains(c.allow, k) {
			c.allow = append(c.allow, k)
		}
	}
}

// planFrontends compares the records of the VIPs' keys.
func (r *Reconciler) planFrontends(c *change) {
	c.frontends = make(map[lb.Frontend]datapath.Frontend)
	spec := &c.want.Spec
	if len(spec.VIPs) == 0 {
		c.fail(errNoVIP)
	}
	takers := turnTakers{scheduler: spec.Scheduler}
	for _, vip := range spec.VIPs {
		family := familyOf(vip)
		t := &c.tables[family]
		for i, p := range spec.Ports {
			key := lb.Frontend{VIP: vip, Port: p.Port, Protocol: p.Protocol}
			want := datapath.Frontend{
				Kind:      datapath.KindService,
				Service:   c.svc.id,
				Scheduler: spec.Scheduler,
				Affinity:  spec.Affinity.Mode != lb.AffinityNone,
				Allow:     len(spec.Allow) > 0,
				DSR:       spec.DSR,
				Group:     r.planTurns(c, takers.next(key, p)),
			}
			switch have, ok := r.frontends[key]; {
			case !c.unplaced[family]:
				if t.slots.region.Len > 0 {
					want.Table, want.Members = t.slots.region, t.members[i].region
					t.shape.put(&want)
				}
			case ok && have.Kind == datapath.KindService && have.Service == c.svc.id:
				want.Table, want.Members = have.Table, have.Members
				kept := shapeOf(&have)
				kept.put(&want)
			default:
				continue // it would have nobody to send to
			}
			r.planFrontend(c, key, want)
		}
		r.planFrontend(c, vipKey(vip), r.vipRecord(c.svc.id, vip))
	}
}

func vipKey(vip netip.Addr) lb.Frontend { return lb.Frontend{VIP: vip} }

// withoutEpoch is a record as far as it is planned.
func withoutEpoch(f datapath.Frontend) datapath.Frontend {
	f.Epoch = 0
	return f
}

// vipRecord is what a VIP as such is to packets.
func (r *Reconciler) vipRecord(service uint32, vip netip.Addr) datapath.Frontend {
	o := r.snapshot.Outside
	return datapath.Frontend{
		Kind: datapath.KindVIP, Service: service,
		Own: slices.Contains(o.Own, vip), Announce: o.Announcer(vip) == r.snapshot.Node && r.snapshot.Node != "",
	}
}

// planFrontend compares one record. The epoch rises with the tables.
func (r *Reconciler) planFrontend(c *change, key lb.Frontend, want datapath.Frontend) {
	have, ok := r.frontends[key]
	want.Epoch = have.Epoch
	if want.Table != have.Table || want.Members != have.Members {
		want.Epoch++
	}
	c.keys = append(c.keys, key)
	if !ok || want != have {
		c.frontends[key] = want
	}
}

// planDirect lists the backends' own addresses, whose flows are tracked too: each as such, which a
// packet's destination is compared with first, and with its ports.
func (r *Reconciler) planDirect(c *change, ids map[backendKey]uint32) {
	c.direct = make([]lb.Frontend, 0, 2*len(ids))
	for k := range ids {
		if k.zone == 0 {
			c.direct = append(c.direct, lb.Frontend{VIP: k.address}, lb.Frontend{VIP: k.address, Port: k.port, Protocol: k.protocol})
		}
	}
	slices.SortFunc(c.direct, compareFrontends)
	c.direct = slices.Compact(c.direct)
}

func compareFrontends(a, b lb.Frontend) int {
	if c := a.VIP.Compare(b.VIP); c != 0 {
		return c
	}
	if a.Port != b.Port {
		return int(a.Port) - int(b.Port)
	}
	return int(a.Protocol) - int(b.Protocol)
}

// familyOf returns the index of an address's family.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func firstVIP(spec *lb.Service, family int) (netip.Addr, bool) {
	i := slices.IndexFunc(spec.VIPs, func(v netip.Addr) bool { return familyOf(v) == family })
	if i < 0 {
		return netip.Addr{}, false
	}
	return spec.VIPs[i], true
}

// errNoVIP is a service that nobody can reach.
var errNoVIP = errors.New("no VIP: vipPool has none left")
