package e2e

import "testing"

// The lines of tclb.yaml for who carries packets: programs in the kernel, or the proxy itself.
const (
	inKernel    = "datapath: {mode: ebpf, " + smallMaps + "}"
	inUserspace = "datapath: {mode: userspace, " + smallMaps + "}"
)

// eachMode runs a test that must hold whoever carries packets. f gets the line for tclb.yaml.
func eachMode(t *testing.T, f func(t *testing.T, mode string)) {
	t.Parallel()
	for name, mode := range map[string]string{"ebpf": inKernel, "userspace": inUserspace} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, mode)
		})
	}
}
