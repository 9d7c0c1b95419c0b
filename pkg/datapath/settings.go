package datapath

import (
	"net/netip"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// PutSettings replaces the operator's settings; the index keys stay.
func (d *Datapath) PutSettings(s Settings) error {
	m := d.maps[bpf.MapsMapSettings]
	var v bpf.MapsNodeSettings
	if err := m.Lookup(uint32(0), &v); err != nil {
		return mapError("read", bpf.MapsMapSettings, err)
	}
	v.Flags = 0
	if s.HostStack {
		v.Flags |= uint32(bpf.MapsSettingFlagSETTING_HOST_STACK)
	}
	if s.AntiSpoof {
		v.Flags |= uint32(bpf.MapsSettingFlagSETTING_ANTI_SPOOF)
	}
	v.HostIfindex, v.HostMac = s.HostIfindex, s.HostMAC
	v.Hairpin4, v.Hairpin6 = addr16(s.Hairpin4), addr16(s.Hairpin6)
	v.TunnelIfindex, v.Vni = s.Tunnel.Ifindex, s.Tunnel.VNI
	v.Vtep4, v.Vtep6 = addr16(s.Tunnel.VTEP[0]), addr16(s.Tunnel.VTEP[1])
	v.Snat4, v.Snat6 = addr16(s.Tunnel.SNAT[0]), addr16(s.Tunnel.SNAT[1])
	v.SnatMin, v.SnatMax = s.Tunnel.SNATMin, s.Tunnel.SNATMax
	return mapError("write", bpf.MapsMapSettings, m.Put(uint32(0), &v))
}

// Settings returns the operator's settings as programs see them.
func (d *Datapath) Settings() (Settings, error) {
	var v bpf.MapsNodeSettings
	err := d.maps[bpf.MapsMapSettings].Lookup(uint32(0), &v)
	return Settings{
		HostStack:   v.Flags&uint32(bpf.MapsSettingFlagSETTING_HOST_STACK) != 0,
		AntiSpoof:   v.Flags&uint32(bpf.MapsSettingFlagSETTING_ANTI_SPOOF) != 0,
		HostIfindex: v.HostIfindex, HostMAC: v.HostMac,
		Hairpin4: someAddr(v.Hairpin4), Hairpin6: someAddr(v.Hairpin6),
		Tunnel: TunnelSettings{
			Ifindex: v.TunnelIfindex, VNI: v.Vni, SNATMin: v.SnatMin, SNATMax: v.SnatMax,
			VTEP: [2]netip.Addr{someAddr(v.Vtep4), someAddr(v.Vtep6)},
			SNAT: [2]netip.Addr{someAddr(v.Snat4), someAddr(v.Snat6)},
		},
	}, mapError("read", bpf.MapsMapSettings, err)
}

// someAddr is the inverse of addr16.
func someAddr(b [16]uint8) netip.Addr {
	if b == [16]uint8{} {
		return netip.Addr{}
	}
	return addrFrom(b)
}
