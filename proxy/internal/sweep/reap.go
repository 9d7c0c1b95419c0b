package sweep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// checkEvery is how often everything is compared. What has no owner must be seen twice before it is
// removed, so it also is the time that an ADD has to finish.
const checkEvery = 15 * time.Second

// Maps is what the reaper needs of the datapath.
type Maps interface {
	RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error)
	Endpoints() (map[datapath.EndpointKey]datapath.Endpoint, error)
	DeleteEndpoint(datapath.EndpointKey) error
}

// Reaper removes attachments that are dead: whose interface is gone, that belong to another boot, or
// whose program does not run any more.
type Reaper struct {
	maps    Maps
	dir     *registry.Dir
	links   string // directory of link pins; "" = programs are attached by nobody
	boot    string
	log     *slog.Logger
	orphans map[string]bool // without an endpoint file when looked at last: pins by id, keys by text
}

// NewReaper returns a reaper for a run directory and the directory of its link pins, "" where there are none.
func NewReaper(maps Maps, dir *registry.Dir, links string, log *slog.Logger) (*Reaper, error) {
	boot, err := registry.BootID()
	if err != nil {
		return nil, err
	}
	return &Reaper{maps: maps, dir: dir, links: links, boot: boot, log: log, orphans: make(map[string]bool)}, nil
}

// Alive says whether an endpoint's interface is there, so that its container can serve. It may be
// called from any goroutine.
func (r *Reaper) Alive(e registry.Endpoint) bool {
	if e.BootID != r.boot {
		return false
	}
	_, err := netlink.LinkByIndex(int(e.HostIfindex)) // one message, no dump
	return err == nil
}

// Run reaps when an interface goes, and looks at everything from time to time, until ctx ends.
func (r *Reaper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := r.follow(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("events of interfaces are lost, looking again", "err", err)
		}
	}
	return nil
}

// follow handles one subscription.
func (r *Reaper) follow(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	updates := make(chan netlink.LinkUpdate, 256)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	r.Check() // after subscribing: what goes from here on is an event
	if err != nil {
		wait(ctx, checkEvery)
		return fmt.Errorf("follow interfaces: %w", err)
	}
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.Check()
		case err := <-failed:
			wait(ctx, time.Second)
			return err
		case u, ok := <-updates:
			if !ok {
				wait(ctx, time.Second)
				return errors.New("events ended")
			}
			if u.Header.Type == unix.RTM_DELLINK && u.Family != unix.AF_BRIDGE {
				r.linkGone(uint32(u.Index))
			}
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// linkGone reaps what was behind an interface.
func (r *Reaper) linkGone(ifindex uint32) {
	endpoints, _ := r.dir.List()
	for _, e := range endpoints {
		if e.HostIfindex == ifindex && !r.Alive(e) {
			r.reap(e, "its interface is gone")
		}
	}
}

// Check looks at everything once.
func (r *Reaper) Check() {
	endpoints, _ := r.dir.List() // unreadable files are reported by who follows the directory
	for _, e := range endpoints {
		if why := r.dead(e); why != "" {
			r.reap(e, why)
		}
	}
	if err := r.checkOrphans(); err != nil {
		r.log.Error("leftovers of containers are not removed", "err", err)
	}
}

// dead says why an attachment is dead; "" if it is not.
func (r *Reaper) dead(e registry.Endpoint) string {
	if e.BootID != r.boot {
		return "it is of another boot"
	}
	if !r.Alive(e) {
		return "its interface is gone"
	}
	if r.links == "" {
		return ""
	}
	link, err := attach.Inspect(r.pin(e.ID, "in"))
	switch {
	case err != nil:
		return "" // no pin: the container runs all the same, and CHECK tells
	case !link.Alive:
		return "its program is gone"
	case link.Ifindex != e.HostIfindex:
		return "its program runs on another interface"
	}
	return ""
}

func (r *Reaper) pin(id, direction string) string {
	return filepath.Join(r.links, id+"-"+direction)
}

// reap removes an attachment, unless it was made anew meanwhile.
func (r *Reaper) reap(e registry.Endpoint, why string) {
	unlock, err := r.dir.Lock(e.ID)
	if err != nil {
		r.log.Error("dead container stays", "endpoint", e.ID, "err", err)
		return
	}
	defer unlock()
	now, err := r.dir.Get(e.ID)
	if err != nil || now.HostIfindex != e.HostIfindex || !now.Created.Equal(e.Created) {
		return
	}
	var errs []error
	if e.BootID == r.boot {
		_, err = r.maps.RetireEndpoint(e.HostIfindex, e.Addresses)
		errs = append(errs, err)
		for _, a := range e.Addresses {
			errs = append(errs, r.maps.DeleteEndpoint(datapath.EndpointKey{Address: a.Unmap(), Ifindex: e.HostIfindex}))
		}
	}
	errs = append(errs, r.detach(e.ID))
	if err := errors.Join(errs...); err != nil {
		r.log.Error("dead container is not removed completely", "endpoint", e.ID, "err", err)
		return // with its file, so that it is tried again
	}
	if err := r.dir.Delete(e.ID); err != nil {
		r.log.Error("dead container stays listed", "endpoint", e.ID, "err", err)
		return
	}
	r.log.Info("removed a container whose DEL never came", "endpoint", e.ID, "container", e.ContainerID,
		"ifname", e.Ifname, "ifindex", e.HostIfindex, "reason", why)
}

func (r *Reaper) detach(id string) error {
	if r.links == "" {
		return nil
	}
	return errors.Join(attach.Detach(r.pin(id, "in"), 0), attach.Detach(r.pin(id, "out"), 0))
}

// checkOrphans removes pins and endpoint addresses that had no endpoint file now and when looked at
// last.
func (r *Reaper) checkOrphans() error {
	seen := make(map[string]bool)
	pins, err := r.orphanedPins(seen)
	if err != nil {
		return err
	}
	keys, err := r.orphanedKeys(seen)
	if err != nil {
		return err
	}
	before := r.orphans
	r.orphans = seen
	var errs []error
	for _, id := range pins {
		if before[id] {
			errs = append(errs, r.removePins(id))
		}
	}
	for _, k := range keys {
		if before[keyText(k)] {
			_, err := r.maps.RetireEndpoint(k.Ifindex, []netip.Addr{k.Address})
			errs = append(errs, err, r.maps.DeleteEndpoint(k))
			r.log.Info("removed an address of no container", "backend", k.Address, "ifindex", k.Ifindex)
		}
	}
	return errors.Join(errs...)
}

// removePins removes pins under the lock, unless an ADD finished meanwhile.
func (r *Reaper) removePins(id string) error {
	unlock, err := r.dir.Lock(id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := r.dir.Get(id); !errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	r.log.Info("removed programs of no container", "endpoint", id)
	return r.detach(id)
}

// orphanedPins lists the ids of link pins without an endpoint file.
func (r *Reaper) orphanedPins(seen map[string]bool) ([]string, error) {
	if r.links == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(r.links)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list link pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		id, direction, ok := strings.Cut(e.Name(), "-")
		if !ok || direction != "in" && direction != "out" || seen[id] {
			continue // tclb0's, for example
		}
		if _, err := r.dir.Get(id); errors.Is(err, registry.ErrNotFound) {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out, nil
}

// orphanedKeys lists the addresses in the endpoints map that no endpoint file has.
func (r *Reaper) orphanedKeys(seen map[string]bool) ([]datapath.EndpointKey, error) {
	keys, err := r.maps.Endpoints()
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	endpoints, errs := r.dir.List()
	if len(errs) > 0 {
		return nil, nil // one of the unreadable files may own it
	}
	for _, e := range endpoints {
		for _, a := range e.Addresses {
			delete(keys, datapath.EndpointKey{Address: a.Unmap(), Ifindex: e.HostIfindex})
		}
	}
	out := make([]datapath.EndpointKey, 0, len(keys))
	for k := range keys {
		seen[keyText(k)] = true
		out = append(out, k)
	}
	return out, nil
}

func keyText(k datapath.EndpointKey) string {
	return fmt.Sprintf("%s%%%d", k.Address, k.Ifindex)
}
