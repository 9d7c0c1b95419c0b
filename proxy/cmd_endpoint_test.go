package main

import (
	"strings"
	"testing"
)

func TestShortIDsStillNameTheContainer(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for id, want := range map[string]string{
		hex:                                    "0123456789ab",
		"default-" + hex:                       "default-0123456789ab", // nerdctl
		"default-web-1":                        "default-web-1",        // ctr
		"my-team-web":                          "my-team-web",
		"abc":                                  "abc",
		"":                                     "",
		"5c2dd9f8-1b1d-4a63-9a0e-2f6f8a1c1f11": "5c2dd9f8-1b1d-4a63-9a0e-2f6f8a1c1f11", // Nomad
	} {
		if got := shortID(id); got != want || !strings.HasPrefix(id, got) {
			t.Errorf("%s is shown as %s, want %s", id, got, want)
		}
	}
}
