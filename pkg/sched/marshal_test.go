package sched

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"slices"
	"testing"
)

func stored(t testing.TB, b *Base) []byte {
	t.Helper()
	data, err := b.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// sealed gives content a right checksum, so that a test gets past it.
func sealed(content []byte) []byte {
	return binary.LittleEndian.AppendUint32(slices.Clone(content), crc32.Checksum(content, castagnoli))
}

func TestStoredBaseReadsBack(t *testing.T) {
	gone := mustNew(t, weighted(1, 0, 4294967295))
	mustUpdate(t, gone, weighted(1, 0, 7)[1:])
	for name, b := range map[string]*Base{
		"empty": mustNew(t, nil), "no weights": mustNew(t, weighted(0, 0)), "gone": gone,
		"one byte": mustNew(t, equalMembers(256)), "two bytes": mustNew(t, equalMembers(257)),
	} {
		var read Base
		if err := read.UnmarshalBinary(stored(t, b)); err != nil || !reflect.DeepEqual(&read, b) {
			t.Errorf("%s: another base (%v)", name, err)
		}
	}
	if err := new(Base).UnmarshalBinary(stored(t, new(Base))); err != nil {
		t.Errorf("zero base: %v", err)
	}
}

func TestStoredBaseIsSmall(t *testing.T) {
	if got := len(stored(t, mustNew(t, equalMembers(5)))); got > 700 {
		t.Errorf("five members take %d bytes, want at most 700", got)
	}
}

func TestBrokenBaseIsRefused(t *testing.T) {
	good := stored(t, mustNew(t, equalMembers(3)))
	content := good[:len(good)-crc32.Size]
	with := func(change func(b *Base)) []byte {
		b := mustNew(t, equalMembers(3))
		change(b)
		return stored(t, b)
	}
	at := func(i int, v byte) []byte {
		data := slices.Clone(content)
		data[i] = v
		return sealed(data)
	}
	const flags = 4 + 1 + 2 + 1 + 1 + 16 + 8 + 1 // of the first seat, after a key of 16 bytes
	var idle Base                                // proves that flags is where the flags are
	if err := idle.UnmarshalBinary(at(flags, flagIdle)); err != nil || !idle.Seats[0].Idle {
		t.Fatalf("flag not at byte %d: %v", flags, err)
	}
	for name, data := range map[string][]byte{
		"nothing":            nil,
		"other file":         []byte("#!/bin/sh\nexit 0\n"),
		"other version":      at(4, 2),
		"cut":                sealed(content[:len(content)-1]),
		"longer":             sealed(append(slices.Clone(content), 0)),
		"size 0":             with(func(b *Base) { b.Size, b.Owners = 0, nil }),
		"size 513":           with(func(b *Base) { b.Size, b.Owners = 513, append(b.Owners, 0) }),
		"size 2^19":          with(func(b *Base) { b.grow(1 << 19) }),
		"owner out of range": with(func(b *Base) { b.Owners[9] = 3 }),
		"owner without weight": with(func(b *Base) {
			b.Seats[1].Weight = 0
		}),
		"seat without slots": with(func(b *Base) { b.Seats = append(b.Seats, Seat{Key: "x", Weight: 1}) }),
		"no owners":          with(func(b *Base) { b.Owners[0] = NoSeat }),
		"key twice":          with(func(b *Base) { b.Seats[1].Key = b.Seats[0].Key }),
		"too many seats":     at(7, 200),
		"unknown flag":       at(flags, 4),
		"gone and idle":      at(flags, flagGone|flagIdle),
	} {
		b := mustNew(t, equalMembers(2))
		want := b.Clone()
		if err := b.UnmarshalBinary(data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
		if !reflect.DeepEqual(b, want) {
			t.Errorf("%s: data that was refused changed the base", name)
		}
	}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	good := stored(t, mustNew(t, equalMembers(3)))
	for i := range good {
		data := slices.Clone(good)
		data[i] ^= 0x10
		if err := new(Base).UnmarshalBinary(data); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v, want ErrCorrupt", i, err)
		}
	}
}

// Whatever can be read can be worked with.
func FuzzUnmarshalBase(f *testing.F) {
	for _, b := range []*Base{mustNew(f, nil), mustNew(f, equalMembers(3)), mustNew(f, weighted(0, 1, 1000)), {}} {
		data := stored(f, b)
		f.Add(data)
		f.Add(data[:len(data)-crc32.Size])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range [][]byte{data, sealed(data)} {
			var b, again Base
			if err := b.UnmarshalBinary(d); err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error %v is not ErrCorrupt", err)
				}
				continue
			}
			if err := again.UnmarshalBinary(stored(t, &b)); err != nil || !reflect.DeepEqual(&b, &again) {
				t.Fatalf("what was read does not store: %v", err)
			}
			if _, err := b.Table(nil); err != nil && !errors.Is(err, ErrEmpty) {
				t.Fatal(err)
			}
			mustUpdate(t, &b, equalMembers(4))
			mustTable(t, &b, equalMembers(4))
		}
	})
}
