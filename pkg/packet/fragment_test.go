package packet

import (
	"bytes"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestReassembleIsTheInverseOfFragments(t *testing.T) {
	for _, s := range specs() {
		for _, s := range []Spec{s, dressed(s)} {
			s.Payload = bytes.Repeat([]byte("0123456789"), 30)
			frame := build(t, s)
			for _, size := range []int{16, 64, 1480} {
				parts, err := Fragments(frame, size, 77)
				if err != nil {
					t.Fatal(err)
				}
				slices.Reverse(parts)
				again, err := Reassemble(parts)
				if size == 1480 && s.Src.Addr().Is4() {
					if err == nil {
						t.Error("a whole IPv4 packet was reassembled")
					}
					again, err = parts[0], nil
				}
				if err != nil {
					t.Fatalf("%v, %d bytes: %v", s, size, err)
				}
				got := parse(t, again)
				if got.Src != s.Src || got.Dst != s.Dst || !bytes.Equal(got.Payload, s.Payload) || !bytes.Equal(got.Options, s.Options) || got.Fragment != nil {
					t.Errorf("got %v, want %v", got, s)
				}
				if s.Src.Addr().Is6() && !bytes.Equal(again, frame) {
					t.Error("the frame is another than before")
				}
			}
		}
	}
}

func TestFragmentsTellWhatTheyAre(t *testing.T) {
	for _, s := range specs() {
		s = dressed(s)
		s.Payload = make([]byte, 100)
		parts, err := Fragments(build(t, s), 64, 77)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for i, part := range parts {
			got := parse(t, part)
			if f := got.Fragment; f == nil || f.ID != 77 || f.Offset != at || f.More != (i < len(parts)-1) {
				t.Errorf("number %d of %v is %v", i, s, got)
			}
			if got.Protocol != s.Protocol && (i == 0 || s.Src.Addr().Is4()) || (got.Src == s.Src) != (i == 0) || got.Src.Addr() != s.Src.Addr() {
				t.Errorf("number %d of %v is %v", i, s, got)
			}
			if want := []byte{0x94, 4, 0, 0}; i > 0 && s.Src.Addr().Is4() && !bytes.Equal(got.Options, want) {
				t.Errorf("later fragment with options %x", got.Options)
			}
			at += 64
		}
		if _, err := Reassemble(parts[:1]); err == nil {
			t.Error("reassembled without the last")
		}
	}
}

func TestFragmentsCanBeBuilt(t *testing.T) {
	for _, s := range specs() {
		for _, f := range []Fragment{{ID: 9, More: true}, {ID: 9, Offset: 16}} {
			s.Fragment = &f
			got := parse(t, build(t, s))
			if got.Fragment == nil || *got.Fragment != f || f.Offset == 0 && got.Src != s.Src || string(got.Payload) != "hello" {
				t.Errorf("got %v, want %v", got, s)
			}
		}
	}
	atomic := specs()[2]
	atomic.Fragment = &Fragment{ID: 9}
	if got := parse(t, build(t, atomic)); got.Protocol != lb.TCP || got.Src != atomic.Src || *got.Fragment != *atomic.Fragment {
		t.Errorf("atomic: got %v", got)
	}
}
