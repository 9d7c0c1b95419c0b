package daemon

import (
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// An upgrade must not put one device's program on another.
func TestPinsSayWhichProgramRunsThere(t *testing.T) {
	for pin, want := range map[string]string{
		"0a1b2c3d-in":                         datapath.FromContainer,
		"0a1b2c3d-out":                        datapath.ToContainer,
		"overlay":                             datapath.FromOverlay,
		uplinkPin("eth0") + uplinkIn:          datapath.FromUplink,
		uplinkPin("eth0") + uplinkOut:         datapath.ToUplink,
		uplinkPin("a-in") + uplinkIn:          datapath.FromUplink,
		uplinkPin("b-out") + uplinkOut:        datapath.ToUplink,
		trunkPin("eth0.7"):                    datapath.FromTrunk,
		trunkPin("a-in"):                      datapath.FromTrunk,
		"host":                                "",
		"uplink-en%2e7" + uplinkIn:            datapath.FromUplink,
		"something that is not ours, perhaps": "",
	} {
		if got := programOf(pin); got != want {
			t.Errorf("%s: %q, want %q", pin, got, want)
		}
	}
}

func TestPinsOfUplinksDiffer(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range []string{"eth0", "eth0.7", "eth0%2e7", "eth0-7", "Eth0", "é"} {
		pin := uplinkPin(name)
		if other, twice := seen[pin]; twice {
			t.Errorf("%s and %s are both %s", name, other, pin)
		}
		seen[pin] = name
		for _, c := range pin {
			if c == '.' || c > '~' {
				t.Errorf("%s: %s is no name for bpffs", name, pin)
			}
		}
	}
}
