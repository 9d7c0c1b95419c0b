package reach

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// pingTimeout is how long a ping waits for its answer.
const pingTimeout = time.Second

// Pong is what came of a ping.
type Pong struct {
	Address  netip.Addr
	Size     int // of the IP packet, in bytes
	Answered bool
	Took     time.Duration // until the answer
}

// Ping sends one probe to a node and waits up to a second for its answer. It returns ErrUnknown, ErrPlain,
// or why the probe could not be sent; a lost one is no error.
func (p *Prober) Ping(ctx context.Context, name string) (Pong, error) {
	w, err := p.ping(name)
	if err != nil {
		return Pong{}, fmt.Errorf("node %q: %w", name, err)
	}
	pong := Pong{Address: w.node.Address, Size: beatSize + w.node.overhead()}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	select {
	case <-w.done:
		pong.Answered, pong.Took = true, w.took
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return pong, ctx.Err()
		}
	}
	return pong, nil
}

func (p *Prober) ping(name string) (*probe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[name]
	if n == nil {
		return nil, ErrUnknown
	}
	if n.Plain {
		return nil, ErrPlain
	}
	now := time.Now()
	w := &probe{
		node: n, token: rand.Uint64(), kind: ping, size: beatSize,
		sent: now, deadline: now.Add(keep), done: make(chan struct{}),
	}
	if err := p.transport.Send(n.Address.Is4(), appendProbe(nil, n.ID, w.token, 0, beatSize), 0); err != nil {
		return nil, fmt.Errorf("send probe: %w", err)
	}
	p.waiting[w.token] = w
	return w, nil
}
