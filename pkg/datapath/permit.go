package datapath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// NotPermitted says whether Load failed because this process may not use BPF here: its capabilities, or who locked the
// host down, are the cause. What the verifier refuses is no such error, though the kernel has the same word for it.
func NotPermitted(err error) bool {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) && !errors.Is(err, unix.EPERM) {
		return false
	}
	return errors.Is(err, fs.ErrPermission)
}

// Attached says whether links of any layout are pinned below bpffs, as far as this process may see that.
func Attached(bpffs string) bool {
	pins, _ := filepath.Glob(filepath.Join(globEscape(bpffs), "v[0-9]*", "links", "*"))
	return slices.ContainsFunc(pins, func(pin string) bool {
		_, err := os.Lstat(pin)
		return err == nil
	})
}

// globEscape makes a path stand for itself in a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}
