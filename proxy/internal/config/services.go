package config

import (
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// File is one services file as read: what it defines, or why it does not count.
type File struct {
	Name     string       // its identity among the files of a directory: the base name
	Path     string       // how findings call it
	Data     []byte       // the content, kept as the last good one when the file is accepted
	Services []Definition // in the order of the file; meaningful without findings only
	Findings []Finding    // in the order of the file; any of them makes the whole file invalid
}

// Definition is a service and where its parts stand.
type Definition struct {
	Service lb.Service // without vips, VIPs is empty: AssignVIPs knows them later

	name     spot
	vips     []spot // as Service.VIPs
	backends []spot // the addresses, as Service.Backends
	nodes    []spot // their nodes; the addresses, where none is named
	vlans    []vlanSpot
	dsr      spot
	fast     spot // accelerate
	vipLost  bool // a VIP is wrong, so the families are not known
}

// spot is what a finding of a later check needs to know about a value.
type spot struct {
	at  position
	key *path
}

// vlanSpot is where the tag of a backend stands.
type vlanSpot struct {
	backend    int // of Service.Backends
	at, device spot
}

// spot returns the place of the value at c.
func (c cursor) spot() spot { return spot{c.at, c.path} }

// add records a finding at a spot.
func (s spot) add(rep *report, reason string) { rep.add(s.at, s.key.String(), reason) }

// ParseServices reads a services file from memory. It never fails: mistakes are in Findings.
func ParseServices(name, path string, data []byte) File {
	f := File{Name: name, Path: path, Data: data}
	rep := &report{file: path}
	if root := parseDocument(rep, data); root != nil {
		newCursor(rep, root).fields(f.read)
	}
	f.Findings = rep.sorted()
	return f
}

// read decodes the top level of a services file.
func (f *File) read(m *mapping) {
	names, vips := make(firsts[string]), make(firsts[netip.Addr])
	for _, e := range m.elements("services") {
		e.fields(func(m *mapping) {
			d := Definition{Service: defaultService()}
			d.read(m)
			f.checkUnique(m.rep, &d, names, vips)
			f.Services = append(f.Services, d)
		})
	}
}

// checkUnique records the names and VIPs that an earlier service of the file has.
func (f *File) checkUnique(rep *report, d *Definition, names firsts[string], vips firsts[netip.Addr]) {
	if name := d.Service.Name; name != "" {
		names.add(cursor{rep: rep, at: d.name.at, path: d.name.key}, name, "service name "+show(name))
	}
	for i, vip := range d.Service.VIPs {
		// Within one service the decoder has told already.
		vips.add(cursor{rep: rep, at: d.vips[i].at, path: d.vips[i].key}, vip, "VIP "+vip.String())
	}
}

// Services returns the services of files, in their order.
func Services(files []File) []lb.Service {
	var out []lb.Service
	for i := range files {
		for j := range files[i].Services {
			out = append(out, files[i].Services[j].Service)
		}
	}
	return out
}
