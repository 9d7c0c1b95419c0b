package datapath

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that needs privileges, unless the environment says that they must be there.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_ROOT") == "" {
		t.Skip("needs root")
	}
}

// testSizes keeps the maps of a test small.
var testSizes = Sizes{MaxServices: 64, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 4096}

// loadTest returns a datapath of its own on a bpffs of its own.
func loadTest(t *testing.T) *Datapath {
	t.Helper()
	needRoot(t)
	dir := t.TempDir() + "/bpf"
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	d, err := Load(Options{BPFFS: dir, Sizes: testSizes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLoadingTwiceOpensTheSamePins(t *testing.T) {
	d := loadTest(t)
	if got := d.Sizes(); got != testSizes {
		t.Errorf("sizes %+v, want %+v", got, testSizes)
	}
	if changed, err := d.Upgrade(); err != nil || len(changed) > 0 {
		t.Errorf("upgrade to the same programs: %v %v", changed, err)
	}
}
