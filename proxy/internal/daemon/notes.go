package daemon

import (
	"context"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Times of the notes in the log.
const (
	notesPause = time.Second      // between two looks, however much happens
	notesEvery = 15 * time.Second // for what happens without us: containers that are not attached
)

// sayNotes writes into the log, once each, what listings say about containers: whom a VIP cannot be
// reached by, and who is not attached. Until ctx ends.
func (p *proxy) sayNotes(ctx context.Context) error {
	said := make(map[string]bool)
	for {
		passed := p.passed.next()
		said = p.newNotes(said)
		pause(ctx, notesPause)
		select {
		case <-ctx.Done():
			return nil
		case <-passed:
		case <-time.After(notesEvery):
		}
	}
}

// newNotes logs what is not in said, and returns all that there is to say now.
func (p *proxy) newNotes(said map[string]bool) map[string]bool {
	now := make(map[string]bool)
	for _, e := range p.Endpoints() {
		for _, note := range e.Notes {
			key := e.ID + " " + note
			if now[key] = true; !said[key] {
				p.Log.Warn(note, "container", e.ContainerID, "name", e.Container, "ifname", e.Ifname)
			}
		}
	}
	pending := func(name, text string) {
		key := name + " pending " + text
		if now[key] = true; !said[key] {
			p.Log.Warn("accepted, but not in effect", "service", name, "reason", text)
		}
	}
	for _, text := range p.Config().Pending(p.Mode().Name) {
		pending("", text)
	}
	for _, s := range p.Services() {
		for _, text := range config.PendingIn(&s.Service, p.Mode().Name) {
			pending(s.Name, text)
		}
	}
	for _, text := range p.mode.apart() {
		if now[text] = true; !said[text] {
			p.Log.Warn(text)
		}
	}
	for _, u := range p.Unattached() {
		key := u.ContainerID + " " + u.Ifname + " unattached"
		if now[key] = true; !said[key] {
			p.Log.Warn("container was started before its network was chained to tclb-cni: restart it to attach it",
				"container", u.ContainerID, "name", u.Name, "network", u.Network, "ifname", u.Ifname)
		}
	}
	return now
}
