package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffsRoot is where a system's bpffs belongs.
const bpffsRoot = "/sys/fs/bpf"

// ensureBPFFS makes dir a private directory on a bpffs. Where there is no bpffs it mounts one: at
// its usual place if dir is below that, else at dir itself.
func ensureBPFFS(dir string) error {
	if on, err := onBPFFS(dir); err != nil || on {
		return errors.Join(err, makeDir(dir, on))
	}
	at := dir
	if dir == bpffsRoot || strings.HasPrefix(dir, bpffsRoot+"/") {
		at = bpffsRoot
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		return fmt.Errorf("make mount point for bpffs: %w", err)
	}
	// Of two that come first at once one mounts: a second mount would hide the first one's pins.
	unlock, err := lockDir(filepath.Dir(at))
	if err != nil {
		return err
	}
	defer unlock()
	if on, err := onBPFFS(dir); err != nil || on {
		return errors.Join(err, makeDir(dir, on))
	}
	if err := unix.Mount("bpf", at, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", at, err)
	}
	return makeDir(dir, true)
}

func makeDir(dir string, wanted bool) error {
	if !wanted {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	return nil
}

// onBPFFS says whether dir, or its nearest ancestor that exists, lies on a bpffs.
func onBPFFS(dir string) (bool, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look for bpffs at %s: %w", dir, err)
		}
		if dir == filepath.Dir(dir) {
			return false, nil
		}
		dir = filepath.Dir(dir)
	}
}

// Uninstall unlinks every pin of every layout below bpffs, which detaches what was attached by
// links, and removes the directories. It returns what it removed and succeeds where nothing is.
func Uninstall(bpffs string) ([]string, error) {
	found, err := layouts(bpffs)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, n := range found {
		dir := filepath.Join(bpffs, fmt.Sprintf("v%d", n))
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				removed = append(removed, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list pins: %w", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove pins: %w", err)
		}
	}
	if on, err := onBPFFS(bpffs); err != nil || !on {
		return removed, err
	}
	if err := os.RemoveAll(filepath.Join(bpffs, fmt.Sprintf("new-v%d", LayoutVersion))); err != nil {
		return removed, fmt.Errorf("remove unfinished pins: %w", err)
	}
	if err := os.Remove(bpffs); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return removed, fmt.Errorf("remove pin directory: %w", err)
	}
	return removed, nil
}
