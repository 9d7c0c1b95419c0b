package packet

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// failure is an error about a frame, told by who received it.
func failure(s Spec, quote []byte) Spec {
	return Spec{Src: s.Dst, Dst: s.Src, ICMP: FragNeeded(quote, 1400)}
}

func TestErrorsTellWhatTheyQuote(t *testing.T) {
	for _, s := range specs() {
		for _, s := range []Spec{s, dressed(s)} {
			frame := build(t, s)
			for _, keep := range []int{4, 8, 19, -1} {
				quote := Quote(frame, keep)
				got := parse(t, build(t, failure(s, quote)))
				if !got.ICMP.IsError(s.Src.Addr().Is4()) || got.ICMP.Rest != [4]byte{0, 0, 5, 0x78} || !bytes.Equal(got.ICMP.Quote, quote) {
					t.Errorf("got %v", got)
				}
				if in := got.ICMP.Inner; in == nil || in.Src != s.Src || in.Dst != s.Dst || in.Protocol != s.Protocol {
					t.Errorf("%d bytes: got inner %v, want %v", keep, in, s)
				}
			}
		}
	}
}

func TestParseFindsAWrongChecksumInAQuote(t *testing.T) {
	for _, s := range specs() {
		quote := Quote(build(t, s), -1)
		quote[len(quote)-1] ^= 1
		var wrong ChecksumError
		if _, err := Parse(build(t, failure(s, quote))); !errors.As(err, &wrong) || (wrong.Layer != "quoted TCP" && wrong.Layer != "quoted UDP") {
			t.Errorf("transport of %v: %v", s, err)
		}
		if s.Src.Addr().Is6() {
			continue
		}
		quote = Quote(build(t, s), 8)
		quote[8]--
		if _, err := Parse(build(t, failure(s, quote))); !errors.As(err, &wrong) || wrong.Layer != "quoted IPv4" {
			t.Errorf("header of %v: %v", s, err)
		}
	}
}

func TestEchoesCarryData(t *testing.T) {
	for _, s := range specs() {
		m := ICMP{Type: Echo4, Rest: [4]byte{1, 2, 3, 4}}
		if s.Src.Addr().Is6() {
			m.Type = Echo6
		}
		s.ICMP = &m
		frame := build(t, s)
		got := parse(t, frame)
		if got.ICMP == nil || got.ICMP.Type != m.Type || got.ICMP.Rest != m.Rest || string(got.Payload) != "hello" || got.Src.Port() != 0 {
			t.Errorf("got %v", got)
		}
		at := 14 + 20 + 8
		if s.Src.Addr().Is6() {
			at = 14 + 40 + 8
		}
		frame[at] ^= 1
		var wrong ChecksumError
		if _, err := Parse(frame); !errors.As(err, &wrong) {
			t.Errorf("changed: %v", err)
		}
	}
}

func TestQuoteOfNoPacketIsNothing(t *testing.T) {
	if q := Quote([]byte("short"), -1); q != nil {
		t.Errorf("got %x", q)
	}
	if _, err := (Spec{Src: specs()[0].Src, Dst: specs()[0].Dst, Protocol: lb.Protocol(132)}).Build(); !errors.Is(err, ErrNotFlow) {
		t.Errorf("SCTP: %v", err)
	}
}
