package datapath

import (
	"errors"
	"testing"
	"time"
)

func TestAStormDoesNotWaitForTheGraceTime(t *testing.T) {
	now := time.Unix(1e9, 0)
	a := NewArena(64, time.Second, func() time.Time { return now })
	all := func() Region {
		t.Helper()
		r, err := a.Alloc(64)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a.Free(all())
	if _, err := a.Alloc(16); !errors.Is(err, ErrFull) {
		t.Errorf("what rests was given out: %v", err)
	}
	calls := 0
	a.Quiesce = func() error { calls++; return nil }
	a.Free(all())
	a.Free(all())
	if calls != 2 {
		t.Errorf("asked to wait %d times, want twice", calls)
	}
	now = now.Add(time.Second)
	r := all()
	if calls != 2 {
		t.Error("asked to wait although the grace time was over")
	}
	if _, err := a.Alloc(16); !errors.Is(err, ErrFull) || calls != 2 {
		t.Errorf("nothing rests: %v, %d", err, calls)
	}
	a.Free(r)
	a.Quiesce = func() error { return errors.New("no") }
	if _, err := a.Alloc(16); !errors.Is(err, ErrFull) {
		t.Errorf("what rests was given out without leave: %v", err)
	}
}
