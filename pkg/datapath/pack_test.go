package datapath

import (
	"slices"
	"testing"
)

func TestPackedTablesAreReadBack(t *testing.T) {
	for _, c := range []struct {
		seats  int
		narrow uint8
	}{{1, 2}, {256, 2}, {257, 1}, {1 << 16, 1}, {1<<16 + 1, 0}} {
		for _, n := range []int{1, 2, 3, 4, 5, 255, 256, 1000} {
			slots := make([]uint32, n)
			for i := range slots {
				slots[i] = uint32(i*7919) % uint32(c.seats)
			}
			slots[n-1] = uint32(c.seats - 1)
			positions, narrow := Pack(slots, c.seats)
			f := Frontend{Table: Region{Offset: 16, Len: uint32(len(positions))}, Slots: uint32(n), Narrow: narrow}
			if narrow != c.narrow || len(positions) != (n+1<<narrow-1)>>narrow {
				t.Errorf("%d slots of %d seats: %d positions of 1<<%d", n, c.seats, len(positions), narrow)
			}
			if got := f.Unpack(positions); !slices.Equal(got, slots) {
				t.Errorf("%d slots of %d seats: %v, want %v", n, c.seats, got, slots)
			}
			if again := frontendFrom(frontendTo(f)); again != f {
				t.Errorf("through the map: %+v, want %+v", again, f)
			}
		}
	}
}
