package packet

import (
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
