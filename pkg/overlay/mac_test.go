package overlay

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestNodesAgreeOnEachOthersMAC(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.11":    "7adff6958314",
		"192.0.2.12":    "7aebf695831b",
		"2001:db8::1":   "7a1cbea3b761",
		"2001:db8:1::1": "7add9382bf01",
	} {
		mac := MAC(netip.MustParseAddr(address))
		if got := fmt.Sprintf("%x", mac); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
		if mac[0]&3 != 2 {
			t.Errorf("%s: %x is not a unicast address of local administration", address, mac)
		}
	}
}
