// Package trunk keeps the ways to backends that are reached with an 802.1Q tag: which zone a VLAN is, under
// whose address this node comes there, and who of the backends says that it is there.
//
// The kernel knows nothing of these VLANs, so it resolves no neighbours in them. Questions (ARP, neighbour
// solicitations) are sent from here; answers are taken in by the datapath, into a map that programs send
// by and that outlives the proxy. A zone is part of flows and of backends' keys, so it must not change
// while its VLAN is known: it is found again by device and tag after a restart, and rests before
// another VLAN gets it.
package trunk

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Times of questions.
const (
	// askEvery is how often is asked who has not answered.
	askEvery = time.Second
	// refreshEvery is how often is asked, at the address that it had, who has.
	refreshEvery = 4 * time.Second
	// lostAfter is how many questions in a row without an answer say that nobody is there.
	lostAfter = 3
	// answerTime is how long an answer is worth looking for before the next question.
	answerTime = 500 * time.Millisecond
)

// Maps is what the table needs of the datapath.
type Maps interface {
	VLANs() (map[uint16]datapath.VLAN, error)
	PutVLAN(zone uint16, v datapath.VLAN) error
	DeleteVLAN(zone uint16) error
	Sources() (map[datapath.SourceKey]netip.Addr, error)
	PutSource(k datapath.SourceKey, address netip.Addr) error
	DeleteSource(k datapath.SourceKey) error
	Neighbours() (map[datapath.NeighbourKey]datapath.Neighbour, error)
	Neighbour(k datapath.NeighbourKey) (datapath.Neighbour, error)
	PutNeighbour(k datapath.NeighbourKey, n datapath.Neighbour) error
	DeleteNeighbour(k datapath.NeighbourKey) error
}

// Devices looks up devices that carry VLANs.
type Devices interface {
	// Device returns a device as it is now.
	Device(name string) (Device, error)
	// Name returns what a device is called; "" if it is not there.
	Name(ifindex uint32) string
}

// Device is one that carries VLANs.
type Device struct {
	Ifindex  uint32
	MAC      [6]byte
	MTU      uint32
	Prefixes []netip.Prefix // its addresses, each with the length of its subnet
}

// Host is a backend that is to be reached.
type Host struct {
	VLAN    lb.VLAN
	Address netip.Addr
}

// Way is a VLAN as programs know it.
type Way struct {
	Zone    uint16
	Problem string // why nobody in it can be reached; "" = they can
}

// State is what the table knows. The receiver may keep it.
type State struct {
	Ways map[lb.VLAN]Way // by lb.VLAN.Link
	// Hosts says of who was asked whether it answers: "", or what is wrong. By lb.VLAN.Link.
	Hosts map[Host]string
}

// Asker speaks to hosts in VLANs.
type Asker interface {
	// Hear lets a device take in questions that are sent to groups.
	Hear(ifindex uint32) error
	// Ask sends a question.
	Ask(q Question) error
}

// Options say what a table works with.
type Options struct {
	Maps    Maps
	Devices Devices
	Wire    Asker
	Now     func() time.Time
}

// Table holds the VLANs. Not safe for concurrent use.
type Table struct {
	Options
	zones   zones
	links   map[lb.VLAN]*link // that are wanted, or were
	sources map[datapath.SourceKey]netip.Addr
	hosts   map[datapath.NeighbourKey]*host
}

// link is a VLAN.
type link struct {
	zone    uint16
	written datapath.VLAN // as in the maps; zero = not there
	problem string
}

// New returns a table that knows nothing; Recover comes next.
func New(o Options) *Table {
	return &Table{Options: o, zones: newZones(), links: make(map[lb.VLAN]*link), hosts: make(map[datapath.NeighbourKey]*host)}
}

// Recover reads what the maps hold. Who had answered counts as there until it is asked in vain.
func (t *Table) Recover() error {
	vlans, err := t.Maps.VLANs()
	if err != nil {
		return fmt.Errorf("read VLANs: %w", err)
	}
	if t.sources, err = t.Maps.Sources(); err != nil {
		return fmt.Errorf("read addresses in VLANs: %w", err)
	}
	neighbours, err := t.Maps.Neighbours()
	if err != nil {
		return fmt.Errorf("read neighbours in VLANs: %w", err)
	}
	for zone, v := range vlans {
		// One whose device is gone cannot be found again, and is surplus.
		name := lb.VLAN{Device: t.Devices.Name(v.Ifindex), ID: v.ID}
		if name.Device == "" {
			name.Device = fmt.Sprintf("#%d", v.Ifindex)
		}
		t.zones.take(name, zone)
		t.links[name] = &link{zone: zone, written: v}
	}
	now := t.Now()
	for k, n := range neighbours {
		t.hosts[k] = &host{fixed: n.Fixed, answers: n.Answers, near: n.MAC != [6]byte{}, confirmed: now.Add(-refreshEvery), asked: now.Add(-askEvery)}
	}
	return nil
}

// Sync makes the wanted hosts ones that packets can go to, looks at their devices, and asks whom it is time to ask.
// Who is not among them stays until Prune. What fails does not keep the others back.
func (t *Table) Sync(wanted []Host) (State, error) {
	var errs []error
	devices := make(map[string]Device)
	problems := make(map[string]string)
	byLink := group(wanted)
	for _, name := range sortedLinks(byLink) {
		if _, looked := problems[name.Device]; !looked {
			d, err := t.Devices.Device(name.Device)
			devices[name.Device], problems[name.Device] = d, ""
			if err != nil {
				problems[name.Device] = err.Error()
			}
		}
		l, err := t.place(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.problem = problems[name.Device]
		errs = append(errs, t.write(l, name, devices[name.Device]), t.hear(l), t.syncSources(l, devices[name.Device], byLink[name]),
			t.syncHosts(l, byLink[name]))
	}
	errs = append(errs, t.poll(byLink))
	return t.state(byLink), errors.Join(errs...)
}

// Poll looks for answers alone, and asks whom it is time to ask.
func (t *Table) Poll(wanted []Host) (State, error) {
	byLink := group(wanted)
	err := t.poll(byLink)
	return t.state(byLink), err
}

// Waits says whether there are questions that an answer may come to yet.
func (t *Table) Waits() bool {
	now := t.Now()
	for _, h := range t.hosts {
		if h.unanswered > 0 && now.Sub(h.asked) < answerTime {
			return true
		}
	}
	return false
}

// group sorts hosts by VLAN, each once.
func group(wanted []Host) map[lb.VLAN][]Host {
	out := make(map[lb.VLAN][]Host)
	for _, h := range wanted {
		name := h.VLAN.Link()
		if !slices.Contains(out[name], h) {
			out[name] = append(out[name], h)
		}
	}
	return out
}

func sortedLinks(by map[lb.VLAN][]Host) []lb.VLAN {
	out := make([]lb.VLAN, 0, len(by))
	for name := range by {
		out = append(out, name)
	}
	slices.SortFunc(out, compareVLANs)
	return out
}

// place returns a VLAN that has a zone.
func (t *Table) place(name lb.VLAN) (*link, error) {
	if l := t.links[name]; l != nil {
		return l, nil
	}
	zone, err := t.zones.get(name)
	if err != nil {
		return nil, err
	}
	t.links[name] = &link{zone: zone}
	return t.links[name], nil
}

// write makes a VLAN's record what its device is.
func (t *Table) write(l *link, name lb.VLAN, d Device) error {
	want := datapath.VLAN{Ifindex: d.Ifindex, ID: name.ID, MAC: d.MAC, MTU: d.MTU}
	switch {
	case l.problem != "" && l.written == datapath.VLAN{}, l.problem == "" && l.written == want:
		return nil
	case l.problem != "":
		if err := t.Maps.DeleteVLAN(l.zone); err != nil {
			return fmt.Errorf("forget VLAN %s: %w", name.Name(), err)
		}
		l.written = datapath.VLAN{}
		return nil
	}
	if err := t.Maps.PutVLAN(l.zone, want); err != nil {
		l.problem = "it could not be made known to programs"
		return fmt.Errorf("make VLAN %s known: %w", name.Name(), err)
	}
	if l.written.Ifindex != want.Ifindex || l.written.MAC != want.MAC {
		t.doubt(l.zone)
	}
	l.written = want
	return nil
}

// hear lets the device of a VLAN take in what is for groups that nobody here has joined: whoever asks for an IPv6
// address sends it there.
func (t *Table) hear(l *link) error {
	if l.problem != "" {
		return nil
	}
	if err := t.Wire.Hear(l.written.Ifindex); err != nil {
		return fmt.Errorf("hear questions on interface %d: %w", l.written.Ifindex, err)
	}
	return nil
}

// syncSources says as whom clients go to the hosts of a VLAN: where its device has an address in a subnet with one of
// them, as that.
func (t *Table) syncSources(l *link, d Device, hosts []Host) error {
	want := make(map[datapath.SourceKey]netip.Addr)
	if l.problem == "" {
		for _, p := range d.Prefixes {
			k := datapath.SourceKey{Zone: l.zone, Prefix: p.Masked()}
			shared := slices.ContainsFunc(hosts, func(h Host) bool { return p.Contains(h.Address) && h.Address != p.Addr() })
			if _, has := want[k]; shared && !has {
				want[k] = p.Addr()
			}
		}
	}
	var errs []error
	for k, a := range want {
		if t.sources[k] == a {
			continue
		}
		err := t.Maps.PutSource(k, a)
		if err == nil {
			t.sources[k] = a
		}
		errs = append(errs, err)
	}
	for k := range t.sources {
		if _, ok := want[k]; ok || k.Zone != l.zone || l.problem != "" {
			continue // of a device that is away: it may return
		}
		errs = append(errs, t.dropSource(k))
	}
	return errors.Join(errs...)
}

func (t *Table) dropSource(k datapath.SourceKey) error {
	if err := t.Maps.DeleteSource(k); err != nil {
		return err
	}
	delete(t.sources, k)
	return nil
}

// source returns as whom this node asks for an address in a zone; not valid for nobody.
func (t *Table) source(zone uint16, address netip.Addr) (best netip.Addr) {
	bits := -1
	for k, a := range t.sources {
		if k.Zone == zone && k.Prefix.Contains(address) && k.Prefix.Bits() > bits {
			best, bits = a, k.Prefix.Bits()
		}
	}
	return best
}

// state returns what is known of VLANs. Those that the maps hold and nobody asks for are in it too, for the
// backends of a proxy before.
func (t *Table) state(by map[lb.VLAN][]Host) State {
	s := State{Ways: make(map[lb.VLAN]Way, len(t.links)), Hosts: make(map[Host]string)}
	for name, l := range t.links {
		s.Ways[name] = Way{Zone: l.zone, Problem: l.problem}
		for k, h := range t.hosts {
			if k.Zone == l.zone && !h.fixed && len(by) == 0 {
				s.Hosts[Host{VLAN: name, Address: k.Address}] = h.problem(k.Address, name)
			}
		}
		for _, w := range by[name] {
			if h := t.hosts[datapath.NeighbourKey{Zone: l.zone, Address: w.Address}]; h != nil && !h.fixed {
				s.Hosts[Host{VLAN: name, Address: w.Address}] = h.problem(w.Address, name)
			}
		}
	}
	return s
}

// Known returns what Recover found.
func (t *Table) Known() State { return t.state(nil) }
