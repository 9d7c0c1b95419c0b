package datapath

import (
	"fmt"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// WriteRegion writes values to the start of r, which no frontend may point to.
func (d *Datapath) WriteRegion(r Region, values []uint32) error {
	if uint32(len(values)) > r.Len {
		return fmt.Errorf("write %d positions into a region of %d: %w", len(values), r.Len, ErrFull)
	}
	return d.eachLine(r, uint32(len(values)), func(line []uint32, done uint32) {
		copy(line, values[done:])
	})
}

// ReadRegion returns what r holds.
func (d *Datapath) ReadRegion(r Region) ([]uint32, error) {
	out := make([]uint32, r.Len)
	err := d.eachLine(r, r.Len, func(line []uint32, done uint32) {
		copy(out[done:], line)
	})
	return out, err
}

// eachLine calls f with the parts of the arena that hold the first n positions of r.
func (d *Datapath) eachLine(r Region, n uint32, f func(line []uint32, done uint32)) error {
	for done := uint32(0); done < n; {
		at := r.Offset + done
		line, err := record[bpf.MapsArenaLine](d, bpf.MapsMapArena, at/arenaLine)
		if err != nil {
			return err
		}
		part := line.At[at%arenaLine:]
		part = part[:min(uint32(len(part)), n-done)]
		f(part, done)
		done += uint32(len(part))
	}
	return nil
}

// Arena hands out regions. It is pure bookkeeping; the caller writes and points. A freed region
// is given out again only after a grace time, when no packet can still be reading it. Not safe for
// concurrent use.
type Arena struct {
	// Quiesce, if set, returns when no packet can still be reading what was freed before it was
	// called. It is called when there is no room besides what is in its grace time: in a storm of
	// changes, where that costs less than to wait.
	Quiesce func() error

	lines uint32
	grace time.Duration
	now   func() time.Time
	free  []Region // in lines, sorted by offset, never adjacent
	used  uint32
	wait  []waiting
}

type waiting struct {
	Region
	until time.Time
}

// NewArena returns an empty arena of that many positions.
func NewArena(slots uint32, grace time.Duration, now func() time.Time) *Arena {
	a := &Arena{lines: slots / arenaLine, grace: grace, now: now}
	a.free = []Region{{0, a.lines}}
	return a
}

// lineSpan returns the lines that a region covers.
func lineSpan(r Region) Region {
	first := r.Offset / arenaLine
	return Region{first, (r.Offset+r.Len+arenaLine-1)/arenaLine - first}
}

// Reserve marks a region as used that something points to already.
func (a *Arena) Reserve(r Region) error {
	if r.Len == 0 {
		return nil
	}
	want := lineSpan(r)
	for i, f := range a.free {
		if want.Offset < f.Offset || want.Offset+want.Len > f.Offset+f.Len {
			continue
		}
		var rest []Region
		if head := want.Offset - f.Offset; head > 0 {
			rest = append(rest, Region{f.Offset, head})
		}
		if tail := f.Offset + f.Len - want.Offset - want.Len; tail > 0 {
			rest = append(rest, Region{want.Offset + want.Len, tail})
		}
		a.free = slices.Replace(a.free, i, i+1, rest...)
		a.used += want.Len
		return nil
	}
	return fmt.Errorf("reserve positions %d to %d of the arena: already in use or outside", r.Offset, r.Offset+r.Len)
}

// Alloc returns a region of n positions, or ErrFull.
func (a *Arena) Alloc(n uint32) (Region, error) {
	if n == 0 {
		return Region{}, nil
	}
	a.release()
	need := lineSpan(Region{0, n}).Len
	best := a.bestFit(need)
	if best < 0 && a.hurry() {
		best = a.bestFit(need)
	}
	if best < 0 {
		return Region{}, fmt.Errorf("allocate %d positions of the arena, %d of %d in use (raise datapath.tableSlots): %w",
			n, a.used*arenaLine, a.lines*arenaLine, ErrFull)
	}
	f := &a.free[best]
	r := Region{f.Offset * arenaLine, n}
	f.Offset += need
	f.Len -= need
	if f.Len == 0 {
		a.free = slices.Delete(a.free, best, best+1)
	}
	a.used += need
	return r, nil
}

// bestFit returns the smallest free region of at least that many lines, or -1.
func (a *Arena) bestFit(need uint32) int {
	best := -1
	for i, f := range a.free {
		if f.Len >= need && (best < 0 || f.Len < a.free[best].Len) {
			best = i
		}
	}
	return best
}

// hurry ends the grace time of all that waits, if that can be made sure of.
func (a *Arena) hurry() bool {
	if len(a.wait) == 0 || a.Quiesce == nil || a.Quiesce() != nil {
		return false
	}
	for _, w := range a.wait {
		a.insert(w.Region)
	}
	a.wait = nil
	return true
}

// Free gives a region back; it is handed out again after the grace time.
func (a *Arena) Free(r Region) {
	if r.Len > 0 {
		a.wait = append(a.wait, waiting{lineSpan(r), a.now().Add(a.grace)})
	}
}

// Used returns the positions in use, those in their grace time included.
func (a *Arena) Used() uint32 { return a.used * arenaLine }

// release moves regions whose grace time is over to the free list.
func (a *Arena) release() {
	now := a.now()
	for len(a.wait) > 0 && !a.wait[0].until.After(now) {
		a.insert(a.wait[0].Region)
		a.wait = a.wait[1:]
	}
}

// insert adds a region of lines to the free list and joins it with its neighbours.
func (a *Arena) insert(r Region) {
	a.used -= r.Len
	i, _ := slices.BinarySearchFunc(a.free, r.Offset, func(f Region, at uint32) int { return int(f.Offset) - int(at) })
	a.free = slices.Insert(a.free, i, r)
	if i+1 < len(a.free) && a.free[i].Offset+a.free[i].Len == a.free[i+1].Offset {
		a.free[i].Len += a.free[i+1].Len
		a.free = slices.Delete(a.free, i+1, i+2)
	}
	if i > 0 && a.free[i-1].Offset+a.free[i-1].Len == a.free[i].Offset {
		a.free[i-1].Len += a.free[i].Len
		a.free = slices.Delete(a.free, i, i+1)
	}
}
