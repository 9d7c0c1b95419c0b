package daemon

import (
	"errors"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/relay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/userspace"
)

// balancer lends the tables of userspace mode to the relay: neither knows the other.
type balancer struct{ maps *userspace.Maps }

// Begin implements relay.Balancer.
func (b balancer) Begin(front lb.Frontend, client netip.AddrPort, gone func()) (relay.Flow, error) {
	f, err := b.maps.Begin(front, client, gone)
	if errors.Is(err, userspace.ErrFull) {
		return nil, relay.ErrFull
	}
	if err != nil {
		return nil, err
	}
	return flow{f}, nil
}

// flow is a flow of the tables as the relay sees it.
type flow struct{ *userspace.Flow }

// Failed implements relay.Flow. What this node lacks is no backend's fault, and another one would not help.
func (f flow) Failed(why relay.Failure) (again bool) {
	switch why {
	case relay.Refused:
		return f.Flow.Failed(userspace.Refused)
	case relay.Unanswered:
		return f.Flow.Failed(userspace.Unanswered)
	}
	return false
}
