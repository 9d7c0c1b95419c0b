package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// Merge decides which version of each services file counts.
//
// running are the versions that counted so far, or at start those of LastGood; files is what the
// directory holds now. A file that is gone takes its services with it. A file without mistakes that
// fits beside the others counts as it is now; any other keeps its running version, or has none.
//
// A name or VIP can belong to one service only. What runs keeps it; of two new claims the file that
// comes first in lexical order gets it. A file of which one service clashes is refused as a whole:
// half a file would be neither what ran nor what was written.
//
// Accepted files have no findings and are sorted by name, and the findings follow that order.
func Merge(running, files []File, env Surroundings) (accepted []File, findings []Finding) {
	files = slices.Clone(files)
	sortByName(files)
	m := merger{env: env, chosen: make(map[string]File, len(files))}
	m.split(byName(running), files)
	if !m.acceptAll() {
		m.acceptOneByOne()
	}
	for i := range files {
		name := files[i].Name
		if f, ok := m.chosen[name]; ok {
			accepted = append(accepted, f)
		}
		findings = append(findings, m.findings[name]...)
	}
	return accepted, findings
}

// merger is one run of Merge.
type merger struct {
	env      Surroundings
	chosen   map[string]File      // the version that counts, by file name
	waiting  []File               // new versions without mistakes of their own, in lexical order
	findings map[string][]Finding // by file name
}

// split chooses every running version whose file is still there, and sorts out what is new.
func (m *merger) split(running map[string]File, files []File) {
	m.findings = make(map[string][]Finding)
	for i := range files {
		f := &files[i]
		old, runs := running[f.Name]
		if runs {
			m.chosen[f.Name] = old
		}
		switch {
		case len(f.Findings) > 0:
			m.findings[f.Name] = m.env.check(f)
		case runs && !m.env.Loopback && len(old.CheckShared()) > 0:
			// It ran in userspace mode. Its addresses mean something else now.
			delete(m.chosen, f.Name)
			m.findings[f.Name] = m.env.check(f)
		case runs && bytes.Equal(old.Data, f.Data):
			m.chosen[f.Name] = *f // the same services, at the path of today
		default:
			if wrong := m.env.check(f); len(wrong) > 0 {
				m.findings[f.Name] = wrong
			} else {
				m.waiting = append(m.waiting, *f)
			}
		}
	}
}

// acceptAll tries all new versions at once: nearly always they fit, also where files exchange
// services, so that none of them could go first.
func (m *merger) acceptAll() bool {
	all := make(map[string]File, len(m.chosen)+len(m.waiting))
	for name, f := range m.chosen {
		all[name] = f
	}
	for _, f := range m.waiting {
		all[f.Name] = f
	}
	c := m.claimsOf(all)
	for _, f := range all {
		if len(c.clashes(&f)) > 0 {
			return false
		}
	}
	m.chosen = all
	return true
}

// acceptOneByOne takes the new versions that fit beside what is chosen, again and again, because each
// of them may give up what another one wants. The rest is refused.
func (m *merger) acceptOneByOne() {
	c := m.claimsOf(m.chosen)
	for progress := true; progress; {
		progress = false
		var refused []File
		for _, f := range m.waiting {
			if len(c.clashes(&f)) > 0 {
				refused = append(refused, f)
				continue
			}
			if old, ok := m.chosen[f.Name]; ok {
				c.drop(&old)
			}
			c.claim(&f)
			m.chosen[f.Name] = f
			progress = true
		}
		m.waiting = refused
	}
	for _, f := range m.waiting {
		m.findings[f.Name] = c.clashes(&f)
	}
}

// claimsOf returns what files claim, the first in lexical order first.
func (m *merger) claimsOf(files map[string]File) *claims {
	c := &claims{
		held:  m.env.Held,
		names: make(map[string]owner),
		vips:  make(map[netip.Addr]owner),
	}
	sorted := make([]File, 0, len(files))
	for _, f := range files {
		sorted = append(sorted, f)
	}
	sortByName(sorted)
	for i := range sorted {
		c.claimHeld(&sorted[i])
	}
	for i := range sorted {
		c.claim(&sorted[i])
	}
	return c
}

// claims says to whom names and VIPs belong.
type claims struct {
	held  map[string][]netip.Addr
	names map[string]owner
	vips  map[netip.Addr]owner
}

// owner is a service of a file.
type owner struct{ file, service string }

// claim gives the file what nobody else has.
func (c *claims) claim(f *File) {
	for i := range f.Services {
		s := &f.Services[i].Service
		me := owner{f.Name, s.Name}
		keep(c.names, s.Name, me)
		for _, vip := range s.VIPs {
			keep(c.vips, vip, me)
		}
	}
	c.claimHeld(f)
}

// claimHeld gives the file's services without vips the VIPs that they have.
func (c *claims) claimHeld(f *File) {
	for i := range f.Services {
		if s := &f.Services[i].Service; len(s.VIPs) == 0 {
			for _, vip := range c.held[s.Name] {
				keep(c.vips, vip, owner{f.Name, s.Name})
			}
		}
	}
}

// keep sets what is not set yet.
func keep[K comparable](m map[K]owner, k K, o owner) {
	if _, taken := m[k]; !taken {
		m[k] = o
	}
}

// drop takes back all that a file claimed.
func (c *claims) drop(f *File) {
	for i := range f.Services {
		s := &f.Services[i].Service
		if c.names[s.Name].file == f.Name {
			delete(c.names, s.Name)
		}
		for _, vip := range slices.Concat(s.VIPs, c.held[s.Name]) {
			if c.vips[vip].file == f.Name {
				delete(c.vips, vip)
			}
		}
	}
}

// clashes returns a finding for each name and VIP of a file that belongs to another service.
func (c *claims) clashes(f *File) []Finding {
	rep := &report{file: f.Path}
	for i := range f.Services {
		d := &f.Services[i]
		name := d.Service.Name
		if o, taken := c.names[name]; taken && o.file != f.Name {
			d.name.add(rep, fmt.Sprintf("service name %s is taken by %s: give this one another name", show(name), printable(o.file)))
		}
		for j, vip := range d.Service.VIPs {
			o, taken := c.vips[vip]
			if taken && c.foreign(o, f, name) {
				d.vips[j].add(rep, fmt.Sprintf("VIP %s is taken by service %s of %s: choose another one",
					vip, show(o.service), printable(o.file)))
			}
		}
	}
	return rep.sorted()
}

// foreign says whether o is another service than the named one of file f. A file's own running version
// gives up what the new version does not want any more.
func (c *claims) foreign(o owner, f *File, name string) bool {
	if o.file != f.Name {
		return true
	}
	if o.service == name {
		return false
	}
	// A sibling keeps a VIP that it holds from the pool, as long as it stays without vips.
	return slices.ContainsFunc(f.Services, func(d Definition) bool {
		return d.Service.Name == o.service && len(d.Service.VIPs) == 0
	})
}
