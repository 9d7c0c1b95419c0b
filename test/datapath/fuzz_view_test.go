package datapath

import (
	"encoding/binary"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// kind is what a frame is to the programs, as docs/packet-walk.md has it.
type kind int

const (
	kindForeign   kind = iota // no addresses
	kindMalformed             // headers contradict each other
	kindOther                 // neither TCP, UDP nor ICMP, or source routed
	kindLater                 // a fragment that is not the first
	kindMessage               // ICMP
	kindStream                // TCP or UDP with ports
)

const (
	etherLen                            = 14
	icmp4, tcp, udp, icmp6              = 1, 6, 17, 58
	hopByHop, routing, fragmentHeader   = 0, 43, 44
	destinationOptions, extensionsBound = 60, 6
	farthest                            = 0x3ff // a transport header behind it is not looked at

	finFlag, synFlag, rstFlag, ackFlag = 1, 2, 4, 16
)

// view is a frame read for the oracle, by rules of its own.
type view struct {
	kind             kind
	v4, first, cut   bool // first: a first fragment; cut: in an extension header
	proto            uint8
	src, dst         netip.Addr
	sport, dport     uint16
	l4, end          int // where the transport header begins and the packet ends, from the frame's start
	id               uint32
	flags            uint8
	seq, ack, length uint32
}

func be16(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
func be32(b []byte, at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }

func look(b []byte) view {
	v := view{kind: kindForeign}
	switch {
	case len(b) < etherLen:
	case be16(b, 12) == 0x0800 && len(b) >= etherLen+20:
		v.look4(b)
	case be16(b, 12) == 0x86dd && len(b) >= etherLen+40:
		v.look6(b)
	}
	return v
}

func (v *view) look4(b []byte) {
	ip := b[etherLen:]
	v.v4, v.proto, v.kind = true, ip[9], kindMalformed
	v.src, v.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	v.l4, v.end = etherLen+int(ip[0]&15)*4, etherLen+int(be16(ip, 2))
	if ip[0]>>4 != 4 || v.l4 < etherLen+20 || v.l4 > v.end || v.end > len(b) {
		return
	}
	part := be16(ip, 6)
	v.id, v.first = uint32(be16(ip, 4)), part&0x3fff == 0x2000
	if part&0x1fff != 0 {
		v.kind = kindLater
		return
	}
	v.lookTransport(b)
}

func (v *view) look6(b []byte) {
	ip := b[etherLen:]
	v.proto, v.kind = ip[6], kindMalformed
	v.src, v.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	v.l4, v.end = etherLen+40, etherLen+40+int(be16(ip, 4))
	if v.src.Is4In6() || v.dst.Is4In6() {
		v.kind = kindForeign // on no wire
		return
	}
	if ip[0]>>4 != 6 || v.end > len(b) {
		return
	}
	for range extensionsBound {
		if !v.extension(b) {
			break
		}
	}
	if v.kind != kindLater && !v.cut {
		v.lookTransport(b)
	}
}

// extension steps over an extension header, if there is one to be stepped over.
func (v *view) extension(b []byte) bool {
	if v.proto != hopByHop && v.proto != routing && v.proto != fragmentHeader && v.proto != destinationOptions || v.kind == kindLater {
		return false
	}
	if v.l4+8 > v.end {
		v.cut = true
		return false
	}
	if v.proto == routing && b[v.l4+3] != 0 {
		return false
	}
	size := 8
	if v.proto == fragmentHeader {
		part := be16(b, v.l4+2)
		v.id, v.first = be32(b, v.l4+4), part&^7 == 0 && part&1 != 0
		if part&^7 != 0 {
			v.kind = kindLater
		}
	} else {
		size = (int(b[v.l4+1]) + 1) * 8
	}
	v.proto, v.l4 = b[v.l4], v.l4+size
	return true
}

func (v *view) lookTransport(b []byte) {
	switch {
	case v.l4 > farthest && !v.v4:
		v.kind = kindOther
	case v.proto == tcp:
		v.lookTCP(b)
	case v.proto == udp:
		if v.l4+8 > v.end {
			return
		}
		size := int(be16(b, v.l4+4))
		if size < 8 || !v.first && v.l4+size > v.end {
			return
		}
		v.kind, v.sport, v.dport = kindStream, be16(b, v.l4), be16(b, v.l4+2)
	case v.proto == icmp4 && v.v4 || v.proto == icmp6 && !v.v4:
		v.kind = kindMessage
	default:
		v.kind = kindOther
	}
}

func (v *view) lookTCP(b []byte) {
	if v.l4+20 > v.end {
		return
	}
	size := int(b[v.l4+12]>>4) * 4
	if size < 20 || v.l4+size > v.end {
		return
	}
	v.kind, v.sport, v.dport = kindStream, be16(b, v.l4), be16(b, v.l4+2)
	v.seq, v.ack, v.flags = be32(b, v.l4+4), be32(b, v.l4+8), b[v.l4+13]
	v.length = uint32(v.end - v.l4 - size)
}

// tuple is the packet's, as the table has it.
func (v *view) tuple() bpf.MapsTuple {
	return tupleOf(v.src, v.dst, v.sport, v.dport, v.proto)
}

func tupleOf(src, dst netip.Addr, sport, dport uint16, proto uint8) bpf.MapsTuple {
	return bpf.MapsTuple{Saddr: src.As16(), Daddr: dst.As16(), Sport: swapped(sport), Dport: swapped(dport), Proto: proto}
}

// swapped is a number in network order.
func swapped(n uint16) uint16 { return n<<8 | n>>8 }

// quoted is what an ICMP error quotes, turned round: a packet of the half that the error belongs to.
type quoted struct {
	view
	l3      int
	illegal bool // the MTU
}

// quote reads an error's quote. isError says whether the message is an error at all; the result is nil
// if it is not legible.
func (v *view) quote(b []byte) (q *quoted, isError bool) {
	if v.l4+8 > v.end {
		return nil, false
	}
	kind, code, mtu := b[v.l4], b[v.l4+1], be32(b, v.l4+4)
	if v.v4 && kind != 3 && kind != 11 && kind != 12 || !v.v4 && (kind < 1 || kind > 4) {
		return nil, false
	}
	q = &quoted{l3: v.l4 + 8}
	q.end = v.end
	if v.v4 {
		mtu &= 0xffff
		q.illegal = kind == 3 && code == 4 && mtu > 0 && mtu < 68
	} else {
		q.illegal = kind == 2 && mtu < 1280
	}
	if !q.read(b[:v.end], v.v4) || q.proto != tcp && q.proto != udp || q.l4+4 > v.end {
		return nil, true
	}
	q.src, q.dst = q.dst, q.src
	q.sport, q.dport = be16(b, q.l4+2), be16(b, q.l4)
	return q, true
}

func (q *quoted) read(b []byte, v4 bool) bool {
	q.v4, q.kind = v4, kindStream
	size := 20
	if !v4 {
		size = 40
	}
	if q.l3+size > len(b) {
		return false
	}
	ip := b[q.l3:]
	if v4 {
		q.proto, q.l4 = ip[9], q.l3+int(ip[0]&15)*4
		q.src, q.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		return ip[0]>>4 == 4 && ip[0]&15 >= 5 && be16(ip, 6)&0x1fff == 0
	}
	q.proto, q.l4 = ip[6], q.l3+size
	q.src, q.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	for range extensionsBound {
		if !q.extension(b) {
			break
		}
	}
	return ip[0]>>4 == 6 && q.kind != kindLater && !q.cut
}
