package datapath

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	again, err := Open(filepath.Dir(d.Dir()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if changed, err := again.Upgrade(); err != nil || len(changed) > 0 {
		t.Errorf("upgrade to the same programs: %v %v", changed, err)
	}
}

// After a boot many containers may start at once, and each may find no bpffs.
func TestOneOfManyMountsBPFFS(t *testing.T) {
	needRoot(t)
	for range 20 {
		dir := t.TempDir() + "/bpf"
		start := make(chan struct{})
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				<-start
				if err := ensureBPFFS(dir); err != nil {
					t.Error(err)
				}
			})
		}
		close(start)
		wg.Wait()
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if n := strings.Count(string(mounts), " "+dir+" "); err != nil || n != 1 {
			t.Errorf("%d mounts at %s, %v", n, dir, err)
		}
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	}
}

func TestQuiesceComesBack(t *testing.T) {
	d := loadTest(t)
	for range 3 {
		if err := d.Quiesce(); err != nil {
			t.Fatal(err)
		}
	}
}
