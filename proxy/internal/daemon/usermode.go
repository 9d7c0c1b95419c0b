package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
	"github.com/tc-loadbalancer/tclb/proxy/internal/relay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/userspace"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Times of the userspace mode.
const (
	// listenAgain is how soon what could not be listened on is tried again.
	listenAgain = time.Second
	// connectTimeout is how long a backend may leave a client waiting before the next one is tried. The kernel repeats a SYN
	// after a second, so it has two to answer; and clients that wait for two seconds see the next backend.
	connectTimeout = 1200 * time.Millisecond
	// lastWait is how long connections may go on after the proxy was told to stop.
	lastWait = 10 * time.Second
)

// userMode is the mode in which this process carries connections itself, through listeners on the VIPs.
type userMode struct {
	*proxy
	reason string // why, if nobody asked for it
	maps   *userspace.Maps
	relay  *relay.Relay

	mu     sync.Mutex // guards all below, and who follows the tables
	closed bool
	fronts map[lb.Frontend]bool         // in the tables when looked at last, and whether anybody serves there
	failed map[string]view.ServiceError // by service
	said   string                       // of the routes, in the log
	count  uint64                       // failures since the start
}

var _ mode = (*userMode)(nil)

// loadUserspace makes empty tables. It refuses to run beside programs that would take its packets away.
func (p *proxy) loadUserspace(reason string) error {
	if inTheWay(p.BPFFS) {
		return errPinned
	}
	u := &userMode{proxy: p, reason: reason, failed: make(map[string]view.ServiceError)}
	u.maps = userspace.New(sizesOf(p.config.Load()), time.Now)
	p.mode = u
	return nil
}

func (p *userMode) describe() view.Mode {
	return view.Mode{Name: config.ModeUserspace, Reason: p.reason}
}

func (p *userMode) tables() Datapath { return p.maps }

func (p *userMode) close() error { return nil }

func (p *userMode) newReaper() (*sweep.Reaper, error) {
	return sweep.NewReaper(p.maps, p.dir, "", p.Log)
}

// prepare implements mode. There are no nodes that connections could be sent to: backends of others have no place.
func (p *userMode) prepare(cfg *config.Config) error {
	p.peers = newPeers(nil)
	found, err := host.Addresses()
	if err != nil {
		return err
	}
	p.noteOwn(cfg, found)
	local, err := localAddresses()
	if err != nil {
		return err
	}
	p.peers.local.Store(&local)
	p.relay = relay.New(relay.Options{
		Balancer: balancer{p.maps}, Log: p.Log, ConnectTimeout: connectTimeout, MaxSessions: cfg.Conntrack.MaxEntries, Routed: true,
	})
	return nil
}

// run lets connections end when the proxy is told to stop, and tries again what could not be listened on.
func (p *userMode) run(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error {
		ticker := time.NewTicker(listenAgain)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return p.leave()
			case <-ticker.C:
			}
			if now, _ := p.unserved(); len(now) > 0 {
				p.listen(true)
			}
		}
	})
}

// leave ends the relay: connections may go on for a while, but not beyond a second signal.
func (p *userMode) leave() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	wait, cancel := context.WithTimeout(context.Background(), lastWait)
	defer cancel()
	go func() {
		select {
		case <-p.Hurry:
			cancel()
		case <-wait.Done():
		}
	}()
	if err := p.relay.Shutdown(wait); err != nil {
		p.Log.Warn("connections were ended", "err", err)
	}
	if _, err := host.RemoveLocal(); err != nil {
		p.Log.Warn("routes of VIPs stay: tclb uninstall removes them", "err", err)
	}
	return nil
}

// network implements mode: an address that came or went may be a VIP.
func (p *userMode) network([]netip.Addr, [2]netip.Addr) error {
	p.store.SetOutside(&state.Outside{Own: *p.peers.local.Load()})
	p.listen(true)
	return nil
}

// follow implements mode.
func (p *userMode) follow() { p.listen(false) }

// listen makes VIPs lead here, and listens on every frontend in the tables. Unless asked to look at the network as well it
// has nothing to do where these are the same as before.
func (p *userMode) listen(look bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	records, err := p.maps.Frontends()
	if err != nil {
		p.Log.Error("services are not listened for", "err", err)
		return
	}
	served := make(map[lb.Frontend]bool, len(records))
	for f, r := range records {
		if r.Kind == datapath.KindService {
			served[f] = r.Table.Len > 0
		}
	}
	if maps.Equal(served, p.fronts) && !look {
		return
	}
	p.fronts = served
	failed, err := host.SyncLocal(vipsOf(served))
	p.sayRoutes(err)
	problems := make(map[lb.Frontend]error)
	var fronts []lb.Frontend
	for f, somebody := range served {
		if err, bad := failed[f.VIP]; bad {
			problems[f] = err
		} else if somebody { // where nobody serves, nobody listens: the kernel refuses at once
			fronts = append(fronts, f)
		}
	}
	maps.Copy(problems, p.relay.Sync(fronts))
	p.note(problems)
}

func vipsOf(fronts map[lb.Frontend]bool) []netip.Addr {
	out := make([]netip.Addr, 0, len(fronts))
	for f := range fronts {
		out = append(out, f.VIP)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// sayRoutes logs what is wrong with routes as such, once. p.mu is held.
func (p *userMode) sayRoutes(err error) {
	text := ""
	if err != nil {
		if text = err.Error(); text != p.said {
			p.Log.Error("routes of VIPs are not as they should be", "err", err)
		}
	}
	p.said = text
}

// note keeps what is wrong as errors of services, and logs what was not so before. p.mu is held.
func (p *userMode) note(problems map[lb.Frontend]error) {
	texts := make(map[string][]string)
	if s := p.store.Snapshot(); s != nil && len(problems) > 0 {
		for _, svc := range s.Services {
			for _, vip := range svc.Spec.VIPs {
				for _, port := range svc.Spec.Ports {
					err := problems[lb.Frontend{VIP: vip, Port: port.Port, Protocol: port.Protocol}]
					if err != nil && !slices.Contains(texts[svc.Spec.Name], err.Error()) {
						texts[svc.Spec.Name] = append(texts[svc.Spec.Name], err.Error())
					}
				}
			}
		}
	}
	now := make(map[string]view.ServiceError, len(texts))
	for name, list := range texts {
		e := view.ServiceError{Service: name, Err: join(list), Since: time.Now()}
		if before, ok := p.failed[name]; ok {
			e.Since = before.Since
		}
		if e.Err != p.failed[name].Err {
			p.Log.Error("service is not served as it should be, trying again", "service", name, "err", e.Err)
			p.count++
		}
		now[name] = e
	}
	for name := range p.failed {
		if _, still := now[name]; !still {
			p.Log.Info("service is served", "service", name)
		}
	}
	p.failed = now
}

// maxReasons bounds how much an error of a service with many ports says.
const maxReasons = 3

func join(texts []string) string {
	more := len(texts) - maxReasons
	if more > 0 {
		texts = append(texts[:maxReasons:maxReasons], fmt.Sprintf("and %d more", more))
	}
	errs := make([]error, len(texts))
	for i, t := range texts {
		errs[i] = errors.New(t)
	}
	return errors.Join(errs...).Error()
}

func (p *userMode) unserved() (now map[string]view.ServiceError, ever uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed, p.count
}

func (p *userMode) farewell() string {
	return "tclb proxy stopped: services are not served until it starts again"
}

// others implements mode: nodes that somebody speaks of are listed, though there is no way to them.
func (p *userMode) others() []view.Node {
	cfg := p.config.Load()
	var out []view.Node
	for _, n := range p.knownNodes(cfg) {
		if n.Name != cfg.Node.Name {
			out = append(out, view.Node{Name: n.Name, Address: n.Address, NoTunnel: true})
		}
	}
	return out
}

func (p *userMode) tunnel() view.Tunnel { return view.Tunnel{} }

func (p *userMode) ping(_ context.Context, node string) (view.Pong, error) {
	for _, n := range p.others() {
		if n.Name == node {
			return view.Pong{}, fmt.Errorf("node %q %w: this node is in userspace mode, which has no tunnel", node, view.ErrNoPing)
		}
	}
	return view.Pong{}, fmt.Errorf("node %q: %w: tclb node list shows them", node, view.ErrNoNode)
}

// ways implements mode.
func (p *userMode) ways() []string { return p.apart() }

// apart implements mode: no other node is reached.
func (p *userMode) apart() []string {
	s := p.store.Snapshot()
	if s == nil {
		return nil
	}
	return elsewhere(s, "and userspace mode has no way to other nodes: it gets no connections from here")
}
