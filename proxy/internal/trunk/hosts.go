package trunk

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Question asks who has an address in a VLAN.
type Question struct {
	Ifindex uint32
	ID      uint16
	MAC     [6]byte    // who asks
	Source  netip.Addr // as whom; not valid for nobody
	Target  netip.Addr
	To      [6]byte // who should have it; zero asks everybody
}

// host is a backend's address in a VLAN.
type host struct {
	fixed      bool // its MAC address is configured: it is not asked
	mac        [6]byte
	answers    uint32 // that the datapath had counted when it was looked at last
	near       bool   // it has answered
	unanswered int    // questions since it did
	asked      time.Time
	confirmed  time.Time // when its last answer was seen
}

// problem says why a host cannot be reached.
func (h *host) problem(address netip.Addr, name lb.VLAN) string {
	if h.near {
		return ""
	}
	return fmt.Sprintf("nobody in VLAN %s says that it has %s", name.Name(), address)
}

// syncHosts makes programs know the hosts of a VLAN.
func (t *Table) syncHosts(l *link, hosts []Host) error {
	want := make(map[netip.Addr]datapath.Neighbour, len(hosts))
	for _, h := range hosts {
		n := datapath.Neighbour{}
		if mac, err := net.ParseMAC(h.VLAN.MAC); err == nil && len(mac) == len(n.MAC) {
			n.MAC, n.Fixed = [6]byte(mac), true
		}
		if have, twice := want[h.Address]; !twice || n.Fixed && (!have.Fixed || string(n.MAC[:]) < string(have.MAC[:])) {
			want[h.Address] = n // two services that name different ones get the same
		}
	}
	var errs []error
	for address, n := range want {
		k := datapath.NeighbourKey{Zone: l.zone, Address: address}
		have := t.hosts[k]
		if have != nil && have.fixed == n.Fixed && (!n.Fixed || have.mac == n.MAC) {
			continue
		}
		if err := t.Maps.PutNeighbour(k, n); err != nil {
			errs = append(errs, fmt.Errorf("make %s known in VLAN zone %d: %w", address, l.zone, err))
			continue
		}
		t.hosts[k] = &host{fixed: n.Fixed, mac: n.MAC, near: n.Fixed}
	}
	return errors.Join(errs...)
}

// doubt has the hosts of a zone asked anew: by another device they may be others, and they have to learn who asks.
func (t *Table) doubt(zone uint16) {
	for k, h := range t.hosts {
		if k.Zone == zone && !h.fixed {
			h.near, h.unanswered, h.confirmed = false, 0, time.Time{}
		}
	}
}

// poll takes in answers, and asks whom it is time to ask.
func (t *Table) poll(by map[lb.VLAN][]Host) error {
	now := t.Now()
	var errs []error
	for _, name := range sortedLinks(by) {
		l := t.links[name]
		if l == nil || l.problem != "" {
			continue
		}
		for _, w := range by[name] {
			k := datapath.NeighbourKey{Zone: l.zone, Address: w.Address}
			if h := t.hosts[k]; h != nil && !h.fixed && (h.unanswered > 0 || now.Sub(h.confirmed) >= refreshEvery) {
				errs = append(errs, t.follow(h, k, l, now))
			}
		}
	}
	return errors.Join(errs...)
}

// follow is poll for one host that is to be asked, or was.
func (t *Table) follow(h *host, k datapath.NeighbourKey, l *link, now time.Time) error {
	n, err := t.Maps.Neighbour(k)
	if errors.Is(err, datapath.ErrNotFound) {
		delete(t.hosts, k) // somebody removed it: the next look makes it anew
		return nil
	}
	if err != nil {
		return fmt.Errorf("read neighbour %s: %w", k.Address, err)
	}
	if n.Answers != h.answers && n.MAC != [6]byte{} {
		h.answers, h.near, h.unanswered, h.confirmed = n.Answers, true, 0, now
		return nil
	}
	if h.unanswered > 0 && now.Sub(h.asked) < askEvery {
		return nil
	}
	if h.unanswered >= lostAfter {
		h.near = false
	}
	q := Question{
		Ifindex: l.written.Ifindex, ID: l.written.ID, MAC: l.written.MAC,
		Source: t.source(k.Zone, k.Address), Target: k.Address,
	}
	if h.near && h.unanswered == 0 {
		q.To = n.MAC
	}
	h.unanswered++
	h.asked = now
	if err := t.Wire.Ask(q); err != nil {
		return fmt.Errorf("ask who has %s: %w", k.Address, err)
	}
	return nil
}
