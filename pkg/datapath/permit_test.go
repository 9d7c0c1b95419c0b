package datapath

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestNotPermittedIsAboutPermissionAlone(t *testing.T) {
	refused := &ebpf.VerifierError{Cause: unix.EACCES}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("create map: %w", unix.EPERM), true},
		{fmt.Errorf("create map: %w", unix.EACCES), true},
		{&os.PathError{Op: "mkdir", Path: "/sys/fs/bpf/tclb", Err: unix.EACCES}, true},
		{fmt.Errorf("mount bpffs: %w", unix.EPERM), true},
		{fmt.Errorf("make a program: %w", refused), false}, // the verifier's word for a program that it does not trust
		{fmt.Errorf("make a program: %w", &ebpf.VerifierError{Cause: unix.EPERM}), true},
		{fmt.Errorf("create map: %w", unix.ENOMEM), false},
		{fmt.Errorf("create map: %w", unix.EINVAL), false},
		{fmt.Errorf("load: %w", ebpf.ErrNotSupported), false},
		{&LayoutError{Dir: "/sys/fs/bpf/tclb", Found: 1, Want: 2}, false},
	} {
		if got := NotPermitted(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestAttachedSeesLinksOfAnyLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b[p]f")
	if Attached(dir) {
		t.Error("where nothing is")
	}
	links := filepath.Join(dir, "v1", "links")
	if err := os.MkdirAll(links, 0o700); err != nil {
		t.Fatal(err)
	}
	if Attached(dir) {
		t.Error("where no link is")
	}
	if err := os.WriteFile(filepath.Join(links, "x-in"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !Attached(dir) {
		t.Error("the link is not seen")
	}
}
