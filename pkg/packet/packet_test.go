package packet

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func specs() []Spec {
	var out []Spec
	for _, a := range []string{"192.0.2.1:1234 198.51.100.2:80", "[2001:db8::1]:1234 [2001:db8::2]:80"} {
		var src, dst string
		for i := range a {
			if a[i] == ' ' {
				src, dst = a[:i], a[i+1:]
			}
		}
		for _, proto := range []lb.Protocol{lb.TCP, lb.UDP} {
			out = append(out, Spec{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), Protocol: proto, Payload: []byte("hello")})
		}
	}
	return out
}

func TestParseIsTheInverseOfBuild(t *testing.T) {
	for _, want := range specs() {
		frame, err := want.Build()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(frame)
		if err != nil {
			t.Fatalf("%v: %v", want, err)
		}
		if got.Src != want.Src || got.Dst != want.Dst || got.Protocol != want.Protocol || string(got.Payload) != "hello" {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestParseFindsAWrongChecksum(t *testing.T) {
	for _, s := range specs() {
		frame, err := s.Build()
		if err != nil {
			t.Fatal(err)
		}
		at := len(frame) - len(s.Payload)
		if s.Src.Addr().Is4() {
			at = 14 + 20 // short frames are padded at the end
		}
		frame[at] ^= 1
		var wrong ChecksumError
		if _, err := Parse(frame); !errors.As(err, &wrong) {
			t.Errorf("%v: %v", s, err)
		}
	}
}

func build(t *testing.T, s Spec) []byte {
	t.Helper()
	frame, err := s.Build()
	if err != nil {
		t.Fatalf("build %v: %v", s, err)
	}
	return frame
}

func parse(t *testing.T, frame []byte) Spec {
	t.Helper()
	s, err := Parse(frame)
	if err != nil {
		t.Fatalf("parse %v: %v", s, err)
	}
	return s
}

// dressed adds options or extension headers.
func dressed(s Spec) Spec {
	if s.Src.Addr().Is4() {
		s.Options = []byte{0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0} // router alert, copied; record route, not
		return s
	}
	s.Extensions = []Extension{
		{Protocol: HopByHop, Data: []byte{5, 2, 0, 0, 1, 0}},
		{Protocol: Routing, Data: make([]byte, 6)},
		{Protocol: DestinationOptions, Data: []byte{1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
	}
	return s
}

func TestOptionsAndExtensionsSurvive(t *testing.T) {
	for _, s := range specs() {
		want := dressed(s)
		got := parse(t, build(t, want))
		if !bytes.Equal(got.Options, want.Options) || len(got.Extensions) != len(want.Extensions) || got.Src != s.Src || got.Dst != s.Dst {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestWhatIsMalformedIsFound(t *testing.T) {
	for _, s := range specs() {
		frame := build(t, s)
		ip, l4, total := 20, 14+20, 16
		if s.Src.Addr().Is6() {
			ip, l4, total = 40, 14+40, 18
		}
		edits := map[string]func(b []byte) []byte{
			"cut in the IP header":        func(b []byte) []byte { return b[:14+ip-1] },
			"version":                     func(b []byte) []byte { b[14] = 0x55; return b },
			"cut in the transport header": func(b []byte) []byte { return b[:l4+7] },
			"total length too large":      func(b []byte) []byte { b[total]++; return b },
			"data offset, UDP length":     func(b []byte) []byte { b[l4+12], b[l4+4] = 0x40, 0xff; return b },
		}
		for name, edit := range edits {
			if _, err := Parse(edit(bytes.Clone(frame))); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v, %s: %v", s, name, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range specs() {
		for _, s := range []Spec{s, dressed(s)} {
			frame, err := s.Build()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(frame)
			failure := Spec{Src: s.Dst, Dst: s.Src, ICMP: FragNeeded(Quote(frame, -1), 1400)}
			if frame, err = failure.Build(); err != nil {
				f.Fatal(err)
			}
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		s, err := Parse(frame)
		_ = s.String()
		if err != nil {
			return
		}
		if parts, err := Fragments(frame, 8, 1); err == nil {
			if _, err := Reassemble(parts); err != nil {
				t.Fatal(err)
			}
		}
	})
}
