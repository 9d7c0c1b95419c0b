// Command alone is userspace mode's relay alone, with a balancer that takes turns: what carrying costs by
// itself, against other proxies.
//
//	alone VIP:PORT=BACKEND:PORT,... ...      tcp; udp with a leading udp:
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/relay"
)

// turns is a Balancer.
type turns struct {
	backends map[lb.Frontend][]netip.AddrPort
	next     atomic.Uint64
}

// flow counts, as the product's does.
type flow struct {
	backend        netip.AddrPort
	packets, bytes atomic.Uint64
}

func (t *turns) Begin(front lb.Frontend, _ netip.AddrPort, _ func()) (relay.Flow, error) {
	backends := t.backends[front]
	return &flow{backend: backends[t.next.Add(1)%uint64(len(backends))]}, nil
}

func (f *flow) Backend() netip.AddrPort    { return f.backend }
func (*flow) Connected()                   {}
func (*flow) Failed(relay.Failure) bool    { return false }
func (f *flow) Sent(packets, n uint64)     { f.packets.Add(packets); f.bytes.Add(n) }
func (f *flow) Answered(packets, n uint64) { f.packets.Add(packets); f.bytes.Add(n) }
func (*flow) Closing()                     {}
func (*flow) End()                         {}
func (*flow) Idle() time.Duration          { return time.Minute }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	t := &turns{backends: map[lb.Frontend][]netip.AddrPort{}}
	var fronts []lb.Frontend
	for _, arg := range args {
		protocol := lb.TCP
		if rest, ok := strings.CutPrefix(arg, "udp:"); ok {
			protocol, arg = lb.UDP, rest
		}
		at, backends, _ := strings.Cut(arg, "=")
		vip, err := netip.ParseAddrPort(at)
		if err != nil {
			return err
		}
		front := lb.Frontend{VIP: vip.Addr(), Port: vip.Port(), Protocol: protocol}
		for b := range strings.SplitSeq(backends, ",") {
			backend, err := netip.ParseAddrPort(b)
			if err != nil {
				return err
			}
			t.backends[front] = append(t.backends[front], backend)
		}
		fronts = append(fronts, front)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := relay.New(relay.Options{Balancer: t, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	for front, err := range r.Sync(fronts) {
		return fmt.Errorf("%s: %w", front, err)
	}
	<-ctx.Done()
	ended, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return r.Shutdown(ended)
}
