package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// How packets of a half leave: enum deliver.
const (
	toStack, toPeer, toHost, toTunnel = 0, 1, 2, 3 // and from there on what leaves this node, in frames of another device
)

// target is what a half's packets become.
type target struct {
	src, dst     netip.Addr
	sport, dport uint16
	mac          []byte // nil: stays
	deliver      uint8
	ifindex      uint32
}

func targetOf(p *rawPair, dir int) target {
	o, mine := p.Half[1-dir].Tuple, p.Half[dir]
	t := target{
		src: netip.AddrFrom16(o.Daddr).Unmap(), dst: netip.AddrFrom16(o.Saddr).Unmap(), sport: swapped(o.Dport), dport: swapped(o.Sport),
		deliver: mine.Deliver, ifindex: mine.Ifindex,
	}
	if t.deliver != toStack {
		t.mac = mine.Mac[:]
	}
	return t
}

// sum is the one's complement sum of data, as a residue: both its zeros are 0. It is 0 over data that a
// right checksum is part of.
func sum(parts ...[]byte) uint32 {
	var n uint64
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			n += uint64(b[0])<<8 | uint64(b[1])
		}
		if len(b) == 1 {
			n += uint64(b[0]) << 8
		}
	}
	return uint32(n % 0xffff)
}

// change is a frame before and after a program, and what may differ: bytes are compared outside of what
// was allowed, and sums over what holds a checksum have to stay what they were.
type change struct {
	in, out []byte
	like    []byte // in, with all that may differ taken from out
	err     error
}

func changed(in, out []byte) *change {
	c := &change{in: in, out: out, like: slices.Clone(in)}
	if len(in) != len(out) {
		c.fail("%d bytes became %d", len(in), len(out))
	}
	return c
}

func (c *change) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// free lets n bytes differ.
func (c *change) free(at, n int) {
	if c.err == nil {
		copy(c.like[at:at+n], c.out[at:at+n])
	}
}

// becomes asserts what stands at a place now.
func (c *change) becomes(what string, at int, want []byte) {
	if c.err != nil {
		return
	}
	if got := c.out[at : at+len(want)]; !bytes.Equal(got, want) {
		c.fail("%s became %x, want %x", what, got, want)
	}
	c.free(at, len(want))
}

// same asserts that the sum over some stretches is what it was.
func (c *change) same(what string, stretches ...[2]int) {
	if c.err != nil {
		return
	}
	var before, after [][]byte
	for _, s := range stretches {
		before, after = append(before, c.in[s[0]:s[1]]), append(after, c.out[s[0]:s[1]])
	}
	if a, b := sum(before...), sum(after...); a != b {
		c.fail("%s checksum was off by %04x and is by %04x", what, a, b)
	}
}

// end compares all that may not differ. A frame that was right has to be right still.
func (c *change) end() error {
	if c.err == nil && !bytes.Equal(c.like, c.out) {
		for i := range c.like {
			if c.like[i] != c.out[i] {
				c.fail("byte %d was %02x and is %02x", i, c.in[i], c.out[i])
			}
		}
	}
	if c.err == nil {
		if _, err := packet.Parse(c.in); err == nil {
			_, c.err = packet.Parse(c.out)
		}
	}
	return c.err
}

// addresses returns where a packet's two addresses stand, from its IP header at l3 on.
func addresses(l3 int, v4 bool) (src, dst, size int) {
	if v4 {
		return l3 + 12, l3 + 16, 4
	}
	return l3 + 8, l3 + 24, 16
}

func ports(a, b uint16) []byte { return []byte{byte(a >> 8), byte(a), byte(b >> 8), byte(b)} }

// headers asserts MAC and addresses of what was translated, and that the IPv4 checksum is as right as it was.
func (c *change) headers(v *view, mac []byte, src, dst netip.Addr) {
	if mac != nil {
		c.becomes("destination MAC", 0, mac)
	}
	at, to, _ := addresses(etherLen, v.v4)
	c.becomes("source", at, src.AsSlice())
	c.becomes("destination", to, dst.AsSlice())
	if v.v4 {
		c.free(etherLen+10, 2)
		c.same("IPv4", [2]int{etherLen, etherLen + 20})
	}
}

// transport asserts the ports and that a checksum over them and the addresses is as right as it was. A
// UDP checksum that is not in use stays so; one that is never looks as if it were not.
func (c *change) transport(v *view, l3, from, limit int, sport, dport uint16, name string) {
	c.becomes(name+"ports", from, ports(sport, dport))
	check := from + 16
	if v.proto == udp {
		check = from + 6
	}
	if check+2 > limit || c.err != nil {
		return
	}
	if v.proto == udp {
		if be16(c.in, check) == 0 {
			return // and is compared
		}
		if be16(c.out, check) == 0 {
			c.fail("%sUDP checksum became zero", name)
		}
	}
	c.free(check, 2)
	src, dst, size := addresses(l3, v.v4)
	c.same(name+"transport", [2]int{src, src + size}, [2]int{dst, dst + size}, [2]int{from, limit})
}

// translated asserts that a frame with ports became a target's, one without as far as its addresses go.
func translated(in, out []byte, v *view, t target) error {
	c := changed(in, out)
	c.headers(v, t.mac, t.src, t.dst)
	if v.kind == kindStream {
		c.transport(v, etherLen, v.l4, v.end, t.sport, t.dport, "")
	}
	return c.end()
}

// translatedError asserts that an ICMP error about a half's flow became one of the other side's.
func translatedError(in, out []byte, v *view, q *quoted, t target) error {
	c := changed(in, out)
	from := t.src
	if v.src != q.src && t.deliver != toHost {
		from = v.src // a router's
	}
	c.headers(v, t.mac, from, t.dst)
	src, dst, _ := addresses(q.l3, v.v4)
	c.becomes("quoted source", src, t.dst.AsSlice())
	c.becomes("quoted destination", dst, t.src.AsSlice())
	if v.v4 {
		c.free(q.l3+10, 2)
		c.same("quoted IPv4", [2]int{q.l3, q.l3 + 20})
	}
	c.transport(&q.view, q.l3, q.l4, v.end, t.dport, t.sport, "quoted ")
	c.free(v.l4+2, 2)
	if v.v4 {
		c.same("ICMP", [2]int{v.l4, v.end})
	} else {
		src, dst, size := addresses(etherLen, false)
		c.same("ICMP", [2]int{src, src + size}, [2]int{dst, dst + size}, [2]int{v.l4, v.end})
	}
	return c.end()
}

// turned asserts that an echo request became its answer, or a later fragment of one a part of it.
func turned(in, out []byte, v *view) error {
	c := changed(in, out)
	c.becomes("destination MAC", 0, in[6:12])
	c.becomes("source MAC", 6, in[:6])
	c.headers(v, nil, v.dst, v.src)
	ttl := etherLen + 8
	if !v.v4 {
		ttl = etherLen + 7
	}
	c.becomes("TTL", ttl, []byte{64})
	if v.kind == kindMessage {
		answer := byte(0)
		if !v.v4 {
			answer = 129
		}
		c.becomes("type", v.l4, []byte{answer})
		c.free(v.l4+2, 2)
		c.same("ICMP", [2]int{v.l4, v.end})
	}
	if c.err == nil && v.minusZero(out) {
		return nil
	}
	return c.end()
}

// minusZero says whether a message is nothing but zeros, checksum included.
// KNOWN: its checksum should be minus zero; this is how the kernel computes it.
func (v *view) minusZero(out []byte) bool {
	return v.kind == kindMessage && !slices.ContainsFunc(out[v.l4:v.end], func(b byte) bool { return b != 0 })
}

// refusal asserts that a packet became the answer that its sender is told: from whom it asked.
func refusal(in, out []byte, v *view, src, dst netip.AddrPort) error {
	got, err := packet.Parse(out)
	if wrong := (packet.ChecksumError{}); err != nil && (!errors.As(err, &wrong) || !strings.HasPrefix(wrong.Layer, "quoted")) {
		return fmt.Errorf("answer: %w", err) // what it quotes may have come wrong
	}
	if v.first || v.flags&rstFlag != 0 || v.dst.IsMulticast() || v.src.IsMulticast() {
		return fmt.Errorf("answered what may not be: %v", got)
	}
	if got.Src.Addr() != src.Addr() || got.Dst.Addr() != dst.Addr() || got.TTL != 64 || got.TOS != 0 || len(got.Options)+len(got.Extensions) > 0 || got.Fragment != nil {
		return fmt.Errorf("answer %v, want it from %v to %v", got, src, dst)
	}
	if v.proto == udp {
		return unreachable(in, got, v)
	}
	if got.ICMP != nil || got.Src != src || got.Dst != dst || got.Flags&packet.RST == 0 || len(got.Payload) > 0 {
		return fmt.Errorf("answer %v, want a reset", got)
	}
	return nil
}

func unreachable(in []byte, got packet.Spec, v *view) error {
	kind, code := uint8(3), uint8(3)
	if !v.v4 {
		kind, code = 1, 4
	}
	if got.ICMP == nil || got.ICMP.Type != kind || got.ICMP.Code != code || len(got.ICMP.Quote) < v.l4-etherLen+8 ||
		!bytes.HasPrefix(in[etherLen:], got.ICMP.Quote) {
		return fmt.Errorf("answer %v, want port unreachable about the packet", got)
	}
	return nil
}

// resetNumbers asserts the numbers of a reset in answer to a segment: RFC 9293 3.10.7.1.
func resetNumbers(out []byte, v *view) error {
	got, err := packet.Parse(out)
	if err != nil {
		return err
	}
	if v.flags&ackFlag != 0 {
		if got.Seq != v.ack || got.Flags != packet.RST {
			return fmt.Errorf("reset %v, want sequence number %d", got, v.ack)
		}
		return nil
	}
	begin := v.seq + uint32(v.flags&synFlag)>>1 + uint32(v.flags&finFlag)
	if got.Seq != 0 || got.Flags != packet.RST|packet.ACK || got.Ack-begin > v.length {
		return fmt.Errorf("reset %v, want it to acknowledge %d", got, begin+v.length)
	}
	return nil
}
