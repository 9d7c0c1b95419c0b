package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Names of pins, as endings where there are several.
const (
	overlayPin = "overlay"
	uplinkIn   = "-ingress"
	uplinkOut  = "-egress"
)

func (p *kernelMode) pinAt(name string) string { return filepath.Join(datapath.LinkDir(p.BPFFS), name) }

// syncTunnel makes the VXLAN device, and returns what programs have to know of it. Without other nodes
// there is none.
func (p *kernelMode) syncTunnel(cfg *config.Config) (datapath.TunnelSettings, error) {
	n := p.peers
	own := *n.own.Load()
	address := ownAddress(cfg, own)
	n.mu.Lock()
	wanted := len(n.listed) > 0
	n.mu.Unlock()
	if !wanted {
		t, err := withPorts(datapath.TunnelSettings{}) // for VLANs
		return t, errors.Join(err, p.clearTunnel())
	}
	n.cleared = false
	if !address.IsValid() {
		return datapath.TunnelSettings{}, errors.New("this node has no address that others could tunnel to: set node.address")
	}
	if !overlay.Local(address) {
		return datapath.TunnelSettings{}, fmt.Errorf("%s, which others know this node by, is no address of it: correct node.address, or this node's entry in nodes", address)
	}
	ifindex, err := overlay.Sync(cfg.Tunnel.Port, address)
	if err != nil {
		return datapath.TunnelSettings{}, err
	}
	if n.attached != ifindex || time.Since(n.attachedAt) > attachEvery {
		_, err := attach.Attach(p.datapath.Program(datapath.FromOverlay), int(ifindex), attach.Ingress, p.pinAt(overlayPin))
		if err != nil {
			return datapath.TunnelSettings{}, fmt.Errorf("attach to %s: %w", overlay.Device, err)
		}
		n.attached, n.attachedAt = ifindex, time.Now()
	}
	return tunnelSettings(cfg, ifindex, own)
}

// clearTunnel takes the device away.
func (p *kernelMode) clearTunnel() error {
	n := p.peers
	if n.cleared {
		return nil
	}
	_, err := overlay.Remove()
	err = errors.Join(attach.Detach(p.pinAt(overlayPin), 0), err)
	n.attached, n.cleared = 0, err == nil
	return err
}

// tunnelSettings are what programs have to know to send to other nodes.
func tunnelSettings(cfg *config.Config, ifindex uint32, own [2]netip.Addr) (datapath.TunnelSettings, error) {
	t := datapath.TunnelSettings{Ifindex: ifindex, VNI: cfg.Tunnel.VNI, VTEP: own, SNAT: own}
	for _, a := range cfg.Datapath.HairpinAddress {
		if family := familyOf(a); !t.SNAT[family].IsValid() {
			t.SNAT[family] = a
		}
	}
	return withPorts(t)
}

// withPorts adds the source ports of flows that go under an address of this node.
func withPorts(t datapath.TunnelSettings) (datapath.TunnelSettings, error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return t, fmt.Errorf("read which ports are the host's own: %w", err)
	}
	var low, high uint16
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		return t, fmt.Errorf("read which ports are the host's own: %w", err)
	}
	t.SNATMin, t.SNATMax = translatedPorts(low, high)
	return t, nil
}

// translatedPorts returns the larger range of ports that the host's own connections do not use.
func translatedPorts(low, high uint16) (first, last uint16) {
	const lowest, highest = 1024, 65535
	below, above := int(low)-lowest, highest-int(high)
	switch {
	case below <= 0 && above <= 0:
		return lowest, highest // none is free: collisions are found out flow by flow
	case below >= above:
		return lowest, low - 1
	}
	return high + 1, highest
}
