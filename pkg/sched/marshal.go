package sched

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrCorrupt says that data is not a base that MarshalBinary wrote, or not in this version.
var ErrCorrupt = errors.New("corrupt base")

// The stored form: marshalMagic, a version byte, the size, the number of seats and the seats;
// the width of an owner in bytes, 0 if there are none, and the owners; then the CRC-32C of all
// that. Numbers of fixed width are little-endian, the others are varints.
const (
	marshalMagic   = "tclb"
	marshalVersion = 1

	// minSeatBytes is what the smallest seat takes, and bounds what a false count can allocate:
	// length, seed, weight, flags.
	minSeatBytes = 1 + 8 + 1 + 1

	flagGone = 1 << 0
	flagIdle = 1 << 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MarshalBinary returns the base's stored form. It never fails.
func (b *Base) MarshalBinary() ([]byte, error) {
	width := 0
	if b.owned() {
		width = ownerWidth(len(b.Seats))
	}
	out := make([]byte, 0, 64+32*len(b.Seats)+width*len(b.Owners))
	out = append(out, marshalMagic...)
	out = append(out, marshalVersion)
	out = binary.AppendUvarint(out, uint64(b.Size))
	out = binary.AppendUvarint(out, uint64(len(b.Seats)))
	for i := range b.Seats {
		s := &b.Seats[i]
		out = binary.AppendUvarint(out, uint64(len(s.Key)))
		out = append(out, s.Key...)
		out = binary.LittleEndian.AppendUint64(out, s.Seed)
		out = binary.AppendUvarint(out, uint64(s.Weight))
		flags := byte(0)
		if s.Gone {
			flags |= flagGone
		}
		if s.Idle {
			flags |= flagIdle
		}
		out = append(out, flags)
	}
	out = append(out, byte(width))
	if width > 0 {
		for _, o := range b.Owners {
			for i := range width {
				out = append(out, byte(o>>(8*i)))
			}
		}
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli)), nil
}

func ownerWidth(seats int) int {
	switch {
	case seats <= 1<<8:
		return 1
	case seats <= 1<<16:
		return 2
	}
	return 4
}

// UnmarshalBinary makes b the base that data holds. Data that breaks any promise of Base gives
// ErrCorrupt and leaves b as it was.
func (b *Base) UnmarshalBinary(data []byte) error {
	n := len(data) - crc32.Size
	if n < len(marshalMagic)+1 || string(data[:len(marshalMagic)]) != marshalMagic {
		return fmt.Errorf("read base: %w: not a base", ErrCorrupt)
	}
	if v := data[len(marshalMagic)]; v != marshalVersion {
		return fmt.Errorf("read base: %w: version %d, want %d", ErrCorrupt, v, marshalVersion)
	}
	if crc32.Checksum(data[:n], castagnoli) != binary.LittleEndian.Uint32(data[n:]) {
		return fmt.Errorf("read base: %w: checksum differs", ErrCorrupt)
	}
	r := reader{rest: data[len(marshalMagic)+1 : n]}
	var read Base
	read.Size = r.uint32()
	read.Seats = r.seats()
	read.Owners = r.owners(read.Size, len(read.Seats))
	if r.failed || len(r.rest) > 0 {
		return fmt.Errorf("read base: %w: wrong length", ErrCorrupt)
	}
	if err := read.check(); err != nil {
		return fmt.Errorf("read base: %w: %w", ErrCorrupt, err)
	}
	*b = read
	return nil
}

// check verifies what the methods of Base rely on.
func (b *Base) check() error {
	if b.Size == 0 && len(b.Seats) == 0 && len(b.Owners) == 0 {
		return nil // the zero value
	}
	if b.Size < MinSize || b.Size > MaxSize || b.Size&(b.Size-1) != 0 || len(b.Owners) != int(b.Size) {
		return fmt.Errorf("size %d", b.Size)
	}
	keys := make(map[string]bool, len(b.Seats))
	weighted := 0
	for i := range b.Seats {
		if keys[b.Seats[i].Key] {
			return fmt.Errorf("seat %d: %w: %q", i, ErrDuplicate, b.Seats[i].Key)
		}
		keys[b.Seats[i].Key] = true
		if b.Seats[i].Weight > 0 {
			weighted++
		}
	}
	if weighted > MaxMembers {
		return fmt.Errorf("%w: %d", ErrTooMany, weighted)
	}
	if !b.owned() && weighted == 0 {
		return nil
	}
	owns := make([]bool, len(b.Seats))
	for s, o := range b.Owners {
		if int64(o) >= int64(len(b.Seats)) || b.Seats[o].Weight == 0 {
			return fmt.Errorf("slot %d: owner %d", s, o)
		}
		if !owns[o] {
			owns[o] = true
			weighted--
		}
	}
	if weighted > 0 {
		return fmt.Errorf("%d seats lost their slots", weighted)
	}
	return nil
}

// reader takes fields off a stored base. After the first that is not there it yields zeros.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) bytes(n uint64) []byte {
	if r.failed || n > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (r *reader) uint32() uint32 {
	v, n := binary.Uvarint(r.rest)
	if r.failed || n <= 0 || v > 1<<32-1 {
		r.failed = true
		return 0
	}
	r.rest = r.rest[n:]
	return uint32(v)
}

func (r *reader) seats() []Seat {
	n := r.uint32()
	if uint64(n)*minSeatBytes > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	seats := make([]Seat, n)
	for i := range seats {
		seats[i].Key = string(r.bytes(uint64(r.uint32())))
		if seed := r.bytes(8); seed != nil {
			seats[i].Seed = binary.LittleEndian.Uint64(seed)
		}
		seats[i].Weight = r.uint32()
		flags := r.byte()
		seats[i].Gone = flags&flagGone != 0
		seats[i].Idle = flags&flagIdle != 0
		r.failed = r.failed || flags&^(flagGone|flagIdle) != 0 || seats[i].Gone && seats[i].Idle
	}
	return seats
}

func (r *reader) owners(size uint32, seats int) []uint32 {
	width := int(r.byte())
	if size > MaxSize || width != 0 && width != ownerWidth(seats) {
		r.failed = true
	}
	data := r.bytes(uint64(width) * uint64(size))
	if r.failed {
		return nil
	}
	owners := make([]uint32, size)
	for s := range owners {
		if width == 0 {
			owners[s] = NoSeat
		}
		for i := range width {
			owners[s] |= uint32(data[s*width+i]) << (8 * i)
		}
	}
	return owners
}
