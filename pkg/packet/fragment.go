package packet

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

var errFragments = errors.New("not the fragments of one packet")

// Fragments cuts a frame into fragments whose payloads are of at most size bytes, a multiple of 8. A
// packet that fits is one fragment: in IPv6 an atomic one, in IPv4 the packet itself. IPv4
// options that are not to be copied stand in the first fragment only (RFC 791 3.1).
func Fragments(frame []byte, size int, id uint32) ([][]byte, error) {
	if len(frame) < ethernetLen || size < 8 || size%8 != 0 {
		return nil, fmt.Errorf("cut frame of %d bytes by %d: %w", len(frame), size, ErrMalformed)
	}
	h, err := walk(frame[ethernetLen:])
	if err != nil {
		return nil, fmt.Errorf("cut frame: %w", err)
	}
	if h.cut || h.fragment != nil {
		return nil, fmt.Errorf("cut frame that is no whole packet: %w", ErrMalformed)
	}
	head, body := frame[:ethernetLen+h.l4Offset], h.l4
	if h.src.Is6() {
		head = frame[:ethernetLen+h.fixed]
		body = frame[len(head) : ethernetLen+h.l4Offset+len(h.l4)]
	}
	if chain := ethernetLen + h.l4Offset - len(head); chain > size {
		return nil, fmt.Errorf("cut frame within its extension headers (RFC 7112 5): %w", ErrMalformed)
	}
	var out [][]byte
	for at := 0; at == 0 || at < len(body); at += size {
		end := min(at+size, len(body))
		f := Fragment{ID: id, Offset: at, More: end < len(body)}
		if h.src.Is4() {
			out = append(out, piece4(head, body[at:end], f))
		} else {
			out = append(out, piece6(head, h.nextAt, body[at:end], f))
		}
	}
	return out, nil
}

// piece4 builds one fragment; head is Ethernet and IP header.
func piece4(head, body []byte, f Fragment) []byte {
	head = slices.Clone(head)
	if f.Offset > 0 {
		head = append(head[:ethernetLen+ipv4Len], copiedOptions(head[ethernetLen+ipv4Len:])...)
	}
	ip := head[ethernetLen:]
	part := uint16(f.Offset / 8)
	if f.More {
		part |= flagMF
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(f.ID))
	binary.BigEndian.PutUint16(ip[6:], part)
	return finish4(head, body)
}

// finish4 sets header length, total length and checksum.
func finish4(head, body []byte) []byte {
	ip := head[ethernetLen:]
	ip[0] = 0x40 | byte(len(ip)/4)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(body)))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip, 0))
	return slices.Concat(head, body)
}

// copiedOptions returns the options with the copied flag, filled up to a multiple of four.
func copiedOptions(options []byte) []byte {
	const copied, end, nop = 0x80, 0, 1
	var out []byte
	for len(options) > 0 && options[0] != end {
		size := 1
		if options[0] != nop {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				break
			}
			size = int(options[1])
		}
		if options[0]&copied != 0 {
			out = append(out, options[:size]...)
		}
		options = options[size:]
	}
	return append(out, make([]byte, -len(out)&3)...)
}

// piece6 builds one fragment; head is Ethernet and what every fragment repeats.
func piece6(head []byte, nextAt int, body []byte, f Fragment) []byte {
	fragment := fragmentHeader(f)
	out := slices.Concat(head, fragment, body)
	next := &out[ethernetLen+nextAt]
	out[len(head)], *next = *next, protoFragment
	binary.BigEndian.PutUint16(out[ethernetLen+4:], uint16(len(out)-ethernetLen-ipv6Len))
	return out
}

// piece is a fragment decoded.
type piece struct {
	frame []byte
	header
	body []byte
}

// Reassemble makes the frame again whose fragments these are, in any order. It returns an error if some are missing,
// overlap, or are of several packets.
func Reassemble(frames [][]byte) ([]byte, error) {
	var pieces []piece
	for _, frame := range frames {
		if len(frame) < ethernetLen {
			return nil, fmt.Errorf("reassemble: %w", ErrMalformed)
		}
		h, err := walk(frame[ethernetLen:])
		if err != nil {
			return nil, fmt.Errorf("reassemble: %w", err)
		}
		if h.fragment == nil || h.cut {
			return nil, fmt.Errorf("reassemble: %w", errFragments)
		}
		body := h.l4
		if h.src.Is6() {
			at := ethernetLen + h.fixed + fragLen
			body = frame[at : ethernetLen+h.l4Offset+len(h.l4)]
		}
		pieces = append(pieces, piece{frame, h, body})
	}
	slices.SortFunc(pieces, func(a, b piece) int { return cmp.Compare(a.fragment.Offset, b.fragment.Offset) })
	body, err := join(pieces)
	if err != nil {
		return nil, err
	}
	first := pieces[0]
	if first.src.Is4() {
		head := slices.Clone(first.frame[:ethernetLen+first.l4Offset])
		binary.BigEndian.PutUint16(head[ethernetLen+6:], 0)
		return finish4(head, body), nil
	}
	head := slices.Clone(first.frame[:ethernetLen+first.fixed])
	head[ethernetLen+first.nextAt] = first.frame[len(head)]
	out := slices.Concat(head, body)
	binary.BigEndian.PutUint16(out[ethernetLen+4:], uint16(len(out)-ethernetLen-ipv6Len))
	return out, nil
}

// join puts together what sorted fragments carry.
func join(pieces []piece) ([]byte, error) {
	var body []byte
	for i, p := range pieces {
		first := pieces[0]
		if p.fragment.Offset != len(body) || p.fragment.ID != first.fragment.ID || p.src != first.src || p.dst != first.dst ||
			p.fragment.More != (i < len(pieces)-1) || p.src.Is4() && p.proto != first.proto {
			return nil, fmt.Errorf("reassemble: %w: number %d of %d, %+v", errFragments, i, len(pieces), *p.fragment)
		}
		body = append(body, p.body...)
	}
	if len(pieces) == 0 {
		return nil, fmt.Errorf("reassemble: %w", errFragments)
	}
	return body, nil
}
