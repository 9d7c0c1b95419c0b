package datapath

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// loadFactorUnit is the datapath's 1.0 of a bounded-load factor.
const loadFactorUnit = 1024

// tick is how long a jiffy is: the resolution of the coarse clocks.
var tick = sync.OnceValue(func() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil || ts.Nano() <= 0 {
		return 4 * time.Millisecond
	}
	return time.Duration(ts.Nano())
})

// ticks rounds up: nothing ends early.
func ticks(d time.Duration) uint32 {
	return uint32(min((d+tick()-1)/tick(), math.MaxInt32))
}

func fromTicks(t uint32) time.Duration {
	return time.Duration(t) * tick()
}

// netPort turns a port into the datapath's network-order field and back.
func netPort(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func addrFrom(b [16]uint8) netip.Addr {
	return netip.AddrFrom16(b).Unmap()
}

// addr16 returns the mapped form; the invalid address is all zeros.
func addr16(a netip.Addr) [16]byte {
	if !a.IsValid() {
		return [16]byte{}
	}
	return a.As16()
}

func frontendKeyTo(f lb.Frontend) bpf.MapsFrontendKey {
	return bpf.MapsFrontendKey{Vip: addr16(f.VIP), Port: netPort(f.Port), Proto: uint8(f.Protocol)}
}

func frontendKeyFrom(k bpf.MapsFrontendKey) lb.Frontend {
	return lb.Frontend{VIP: addrFrom(k.Vip), Port: netPort(k.Port), Protocol: lb.Protocol(k.Proto)}
}

func frontendTo(f Frontend) bpf.MapsFrontend {
	v := bpf.MapsFrontend{
		Service: f.Service, Epoch: f.Epoch, Kind: uint8(f.Kind), Scheduler: uint8(f.Scheduler),
		Table: f.Table.Offset, TableLen: f.TableSlots(), Narrow: f.Narrow, Members: f.Members.Offset, MembersLen: f.Members.Len,
		Group: f.Group, Weight: f.Weight, Head: f.Head,
	}
	set := func(on bool, flag bpf.MapsFrontendFlag) {
		if on {
			v.Flags |= uint8(flag)
		}
	}
	set(f.Allow, bpf.MapsFrontendFlagFRONTEND_ALLOW)
	set(f.Affinity, bpf.MapsFrontendFlagFRONTEND_AFFINITY)
	set(f.Listed, bpf.MapsFrontendFlagFRONTEND_LISTED)
	set(f.Own, bpf.MapsFrontendFlagFRONTEND_OWN)
	set(f.Announce, bpf.MapsFrontendFlagFRONTEND_ANNOUNCE)
	return v
}

// frontendCheck is what tells a whole record of a key from one that is being replaced.
func frontendCheck(k bpf.MapsFrontendKey, v bpf.MapsFrontend) uint32 {
	const keyFactor, valueFactor = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
	words := unsafe.Slice((*uint32)(unsafe.Pointer(&k)), unsafe.Sizeof(k)/4)
	var sum uint64
	for i, w := range words {
		sum += uint64(w) * (keyFactor * uint64(2*i+1))
	}
	words = unsafe.Slice((*uint32)(unsafe.Pointer(&v)), unsafe.Sizeof(v)/4-1)
	for i, w := range words {
		sum += uint64(w) * (valueFactor * uint64(2*i+1))
	}
	return uint32(sum >> 32)
}

func frontendFrom(v bpf.MapsFrontend) Frontend {
	return Frontend{
		Kind: FrontendKind(v.Kind), Service: v.Service, Scheduler: lb.Scheduler(v.Scheduler), Epoch: v.Epoch,
		Allow:    v.Flags&uint8(bpf.MapsFrontendFlagFRONTEND_ALLOW) != 0,
		Affinity: v.Flags&uint8(bpf.MapsFrontendFlagFRONTEND_AFFINITY) != 0,
		Listed:   v.Flags&uint8(bpf.MapsFrontendFlagFRONTEND_LISTED) != 0,
		Own:      v.Flags&uint8(bpf.MapsFrontendFlagFRONTEND_OWN) != 0,
		Announce: v.Flags&uint8(bpf.MapsFrontendFlagFRONTEND_ANNOUNCE) != 0,
		Group:    v.Group, Weight: v.Weight, Head: v.Head,
		Table: Region{v.Table, packedLen(v.TableLen, v.Narrow)}, Slots: v.TableLen, Narrow: v.Narrow,
		Members: Region{v.Members, v.MembersLen},
	}
}

func serviceTo(s Service) bpf.MapsService {
	v := bpf.MapsService{
		Gen: s.Gen, BaseGen: s.BaseGen, Affinity: ticks(s.Affinity),
		LoadFactor: uint32(math.Round(s.LoadFactor * loadFactorUnit)),
	}
	for i, d := range timeoutFields(&s.Timeouts) {
		v.Timeouts[i] = ticks(*d)
	}
	return v
}

func serviceFrom(v bpf.MapsService) Service {
	s := Service{
		Gen: v.Gen, BaseGen: v.BaseGen, Affinity: fromTicks(v.Affinity),
		LoadFactor: float64(v.LoadFactor) / loadFactorUnit,
	}
	for i, d := range timeoutFields(&s.Timeouts) {
		*d = fromTicks(v.Timeouts[i])
	}
	return s
}

// timeoutFields lists t's fields at the positions of enum timeout.
func timeoutFields(t *lb.Timeouts) [bpf.MapsTimeoutTIMEOUTS]*time.Duration {
	return [...]*time.Duration{
		bpf.MapsTimeoutTIMEOUT_TCP_SYN:         &t.TCPSyn,
		bpf.MapsTimeoutTIMEOUT_TCP_ESTABLISHED: &t.TCPEstablished,
		bpf.MapsTimeoutTIMEOUT_TCP_FIN:         &t.TCPFin,
		bpf.MapsTimeoutTIMEOUT_UDP:             &t.UDP,
		bpf.MapsTimeoutTIMEOUT_UDP_STREAM:      &t.UDPStream,
	}
}

func backendTo(b Backend) bpf.MapsBackend {
	v := bpf.MapsBackend{
		Addr: addr16(b.Address), Port: netPort(b.Port), Zone: b.Zone, Gen: b.Gen, Service: b.Service,
		Ifindex: b.Ifindex, Mac: b.MAC, Proto: uint8(b.Protocol), Weight: b.Weight,
		Owner: b.Owner, Group: b.Group,
	}
	set := func(on bool, flag bpf.MapsBackendFlag) {
		if on {
			v.Flags |= uint8(flag)
		}
	}
	set(b.Live, bpf.MapsBackendFlagBACKEND_LIVE)
	set(b.New, bpf.MapsBackendFlagBACKEND_NEW)
	set(b.Local, bpf.MapsBackendFlagBACKEND_LOCAL)
	set(b.Trial, bpf.MapsBackendFlagBACKEND_TRIAL)
	return v
}

func backendFrom(v bpf.MapsBackend) Backend {
	has := func(f bpf.MapsBackendFlag) bool { return v.Flags&uint8(f) != 0 }
	return Backend{
		Address: addrFrom(v.Addr), Port: netPort(v.Port), Protocol: lb.Protocol(v.Proto), Zone: v.Zone, Gen: v.Gen,
		Service: v.Service, Ifindex: v.Ifindex, MAC: v.Mac, Weight: v.Weight, Owner: v.Owner,
		Group: v.Group,
		Live:  has(bpf.MapsBackendFlagBACKEND_LIVE), New: has(bpf.MapsBackendFlagBACKEND_NEW),
		Local: has(bpf.MapsBackendFlagBACKEND_LOCAL), Trial: has(bpf.MapsBackendFlagBACKEND_TRIAL),
	}
}

func endpointKeyTo(k EndpointKey) bpf.MapsEndpointKey {
	return bpf.MapsEndpointKey{Addr: addr16(k.Address), Ifindex: k.Ifindex}
}

// idPrefixBits is the part of a trie key's prefix that the id in front takes.
const idPrefixBits = 32

func allowKeyTo(k AllowKey) bpf.MapsAllowKey {
	length, addr := prefixTo(k.Prefix)
	return bpf.MapsAllowKey{PrefixLen: length, Service: k.Service, Addr: addr}
}

func allowKeyFrom(k bpf.MapsAllowKey) AllowKey {
	return AllowKey{Service: k.Service, Prefix: prefixFrom(k.PrefixLen, k.Addr)}
}

func subnetKeyTo(k SubnetKey) bpf.MapsSubnetKey {
	length, addr := prefixTo(k.Prefix)
	return bpf.MapsSubnetKey{PrefixLen: length, Node: uint32(k.Node), Addr: addr}
}

func subnetKeyFrom(k bpf.MapsSubnetKey) SubnetKey {
	return SubnetKey{Node: uint16(k.Node), Prefix: prefixFrom(k.PrefixLen, k.Addr)}
}

// prefixTo returns a prefix behind an id of 32 bits, as keys of tries have it.
func prefixTo(p netip.Prefix) (length uint32, addr [16]byte) {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return idPrefixBits + uint32(bits), addr16(p.Masked().Addr())
}

func prefixFrom(length uint32, addr [16]byte) netip.Prefix {
	a, bits := addrFrom(addr), int(length)-idPrefixBits
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

func pairTuples(p *bpf.MapsCtPair) (orig, reply *bpf.MapsTuple) {
	return &p.Half[bpf.MapsCtDirDIR_ORIGINAL].Tuple, &p.Half[bpf.MapsCtDirDIR_REPLY].Tuple
}

func pairFrom(index uint32, v *bpf.MapsCtPair, now uint32) Pair {
	orig, reply := pairTuples(v)
	age := func(tick uint32) time.Duration { return fromTicks(uint32(max(int32(now-tick), 0))) }
	p := Pair{
		Index: index, Protocol: lb.Protocol(orig.Proto), State: FlowState(v.State),
		Zone: orig.Zone, BackendZone: reply.Zone,
		Return:  v.Flags&uint32(bpf.MapsCtPairFlagPAIR_RETURN) != 0,
		Client:  netip.AddrPortFrom(addrFrom(orig.Saddr), netPort(orig.Sport)),
		VIP:     netip.AddrPortFrom(addrFrom(orig.Daddr), netPort(orig.Dport)),
		Backend: netip.AddrPortFrom(addrFrom(reply.Saddr), netPort(reply.Sport)),
		Direct:  v.Flags&uint32(bpf.MapsCtPairFlagPAIR_DIRECT) != 0,
		Active:  v.State == uint32(bpf.MapsCtStateCT_ESTABLISHED) && v.Backend != 0,
		Service: v.Service, BackendID: v.Backend, BackendGen: v.BackendGen, Created: age(v.Created),
		Idle: min(age(v.Half[0].Seen), age(v.Half[1].Seen)),
	}
	for i := range v.Half {
		p.Packets[i], p.Bytes[i] = v.Half[i].Packets, v.Half[i].Bytes
	}
	return p
}
