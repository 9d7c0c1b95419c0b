package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

func TestWhyTheDatapathFailedDecidesTheAdvice(t *testing.T) {
	for want, err := range map[string]error{
		"uname -r":      fmt.Errorf("load program: %w", &ebpf.VerifierError{Cause: errors.New("permission denied")}),
		"CAP_BPF":       errors.New("operation not permitted"),
		"map layout v3": &datapath.LayoutError{Dir: "/x", Found: 3, Want: 1},
	} {
		if got := datapathFailure(err).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: %q does not say %q", err, got, want)
		}
	}
}
