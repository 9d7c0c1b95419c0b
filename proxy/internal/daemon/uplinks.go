package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/announce"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// uplinkPrefix begins the names of the uplinks' pins.
const uplinkPrefix = "uplink-"

// uplinks are the devices on which VIPs answer clients outside. Of one goroutine alone.
type uplinks struct {
	maps       uplinkMaps
	have       map[uint32][6]byte // as in the maps; nil = not read yet
	attached   map[string]uint32  // device by name
	attachedAt time.Time
	announcer  *announce.Announcer
	told       *state.Snapshot    // that the announcer was told of completely
	at         map[uint32][6]byte // where it is to announce
}

// uplinkMaps is what uplinks need of the datapath.
type uplinkMaps interface {
	Uplinks() (map[uint32][6]byte, error)
	PutUplink(ifindex uint32, mac [6]byte) error
	DeleteUplink(ifindex uint32) error
}

func newUplinks(m uplinkMaps) *uplinks {
	return &uplinks{maps: m, attached: make(map[string]uint32), announcer: announce.New()}
}

// uplinkPin returns the beginning of the names of an uplink's pins.
func uplinkPin(device string) string { return devicePin(uplinkPrefix, device) }

// devicePin returns a name for a device's pins. bpffs does not take dots.
func devicePin(prefix, device string) string {
	var out strings.Builder
	out.WriteString(prefix)
	for _, c := range []byte(device) {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02x", c)
		}
	}
	return out.String()
}

// syncUplinks makes programs run on the devices that are listed and there, and on no others.
func (p *kernelMode) syncUplinks(cfg *config.Config) error {
	u := p.uplinks
	if u.have == nil {
		have, err := u.maps.Uplinks()
		if err != nil {
			return fmt.Errorf("read uplinks: %w", err)
		}
		u.have = have
	}
	again := time.Since(u.attachedAt) > attachEvery
	if again {
		u.attachedAt = time.Now()
	}
	var errs []error
	want := make(map[uint32][6]byte, len(cfg.Uplinks))
	for _, name := range cfg.Uplinks {
		device, err := net.InterfaceByName(name)
		if err != nil {
			delete(u.attached, name)
			errs = append(errs, fmt.Errorf("uplink %s is not there: VIPs answer no client outside on it until it is", name))
			continue
		}
		if len(device.HardwareAddr) != 6 {
			errs = append(errs, fmt.Errorf("uplink %s is no Ethernet device: remove it from uplinks", name))
			continue
		}
		want[uint32(device.Index)] = [6]byte(device.HardwareAddr)
		if again || u.attached[name] != uint32(device.Index) {
			errs = append(errs, p.attachUplink(name, device.Index))
		}
	}
	errs = append(errs, u.write(want), p.dropUplinks(cfg, again))
	return errors.Join(errs...)
}

func (p *kernelMode) attachUplink(name string, ifindex int) error {
	_, err := attach.Attach(p.datapath.Program(datapath.FromUplink), ifindex, attach.Ingress, p.pinAt(uplinkPin(name)+uplinkIn))
	if err == nil {
		_, err = attach.Attach(p.datapath.Program(datapath.ToUplink), ifindex, attach.Egress, p.pinAt(uplinkPin(name)+uplinkOut))
	}
	if err != nil {
		return fmt.Errorf("attach to uplink %s: %w", name, err)
	}
	p.uplinks.attached[name] = uint32(ifindex)
	return nil
}

// write makes the map equal to what is wanted.
func (u *uplinks) write(want map[uint32][6]byte) error {
	var errs []error
	if !maps.Equal(u.at, want) {
		u.at, u.told = want, nil // a device with another address is news to its link
	}
	for ifindex, mac := range want {
		if have, ok := u.have[ifindex]; ok && have == mac {
			continue
		}
		if err := u.maps.PutUplink(ifindex, mac); err != nil {
			errs = append(errs, err)
			continue
		}
		u.have[ifindex] = mac
	}
	for ifindex := range u.have {
		if _, ok := want[ifindex]; ok {
			continue
		}
		if err := u.maps.DeleteUplink(ifindex); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(u.have, ifindex)
	}
	return errors.Join(errs...)
}

// dropUplinks detaches from devices that are listed no more. The first look finds those of an earlier
// proxy as well.
func (p *kernelMode) dropUplinks(cfg *config.Config, look bool) error {
	for name := range p.uplinks.attached {
		if !slices.Contains(cfg.Uplinks, name) {
			delete(p.uplinks.attached, name)
			look = true
		}
	}
	if !look {
		return nil
	}
	wanted := make(map[string]bool, 2*len(cfg.Uplinks))
	for _, name := range cfg.Uplinks {
		wanted[uplinkPin(name)+uplinkIn], wanted[uplinkPin(name)+uplinkOut] = true, true
	}
	entries, err := os.ReadDir(datapath.LinkDir(p.BPFFS))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), uplinkPrefix) && !wanted[e.Name()] {
			errs = append(errs, attach.Detach(p.pinAt(e.Name()), 0))
		}
	}
	return errors.Join(errs...)
}

// noteOutside tells the state who answers for VIPs, and which of them are this node's own addresses.
// Nodes that are believed to do so are those on our link that run tclb and can be reached: all nodes must
// have the same `announce`.
func (p *kernelMode) noteOutside(cfg *config.Config) {
	o := &state.Outside{Own: *p.peers.local.Load()}
	if cfg.Announce && len(cfg.Uplinks) > 0 {
		o.Announcers = append(o.Announcers, cfg.Node.Name)
		n := p.peers
		addresses := *n.own.Load()
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, peer := range n.listed {
			if n.lost[peer.Name] || peer.MAC != overlay.MAC(peer.VTEP) {
				continue
			}
			if path, err := overlay.PathTo(addresses[familyOf(peer.VTEP)], peer.VTEP); err == nil && path.OnLink {
				o.Announcers = append(o.Announcers, peer.Name)
			}
		}
		slices.Sort(o.Announcers)
	}
	p.store.SetOutside(o)
}

// announceVIPs says on the uplinks which VIPs are here, once packets find them here.
func (p *kernelMode) announceVIPs() error {
	u := p.uplinks
	s := p.store.Snapshot()
	if s == nil || s == u.told || p.reconcile.Stats().Applied < s.Revision {
		return nil
	}
	var vips []netip.Addr
	for _, svc := range s.Services {
		for _, vip := range svc.Spec.VIPs {
			if s.Outside.Announcer(vip) == s.Node && !slices.Contains(s.Outside.Own, vip) {
				vips = append(vips, vip)
			}
		}
	}
	done, err := u.announcer.Sync(u.at, vips)
	if done && err == nil {
		u.told = s
	}
	return err
}
