package registry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned by LockProxy while another proxy holds the run directory.
var ErrLocked = errors.New("another proxy runs on this run directory")

// Lock waits until no other process works on the endpoint id, and keeps others out until
// unlock is called or the process ends.
func (d *Dir) Lock(id string) (unlock func(), err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	path := filepath.Join(d.locks(), id)
	for {
		f, err := flock(path, unix.LOCK_EX)
		if err != nil {
			return nil, fmt.Errorf("lock endpoint %s: %w", id, err)
		}
		if isAt(f, path) {
			// The holder removes the file, so that endpoints leave nothing behind.
			// Whoever waited on it finds another file or none at path and begins anew.
			return func() { _ = os.Remove(path); _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

// LockProxy makes this process the run directory's only proxy until unlock is called or the
// process ends. It does not wait: ErrLocked says that another proxy holds the lock.
func (d *Dir) LockProxy() (unlock func(), err error) {
	f, err := flock(filepath.Join(d.path, "proxy.lock"), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w", d.path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// flock opens path and locks it. Each call has an open file of its own, so goroutines of one
// process exclude each other as processes do.
func flock(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, err
		}
	}
}

// isAt reports whether path still leads to the open file f.
func isAt(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}
