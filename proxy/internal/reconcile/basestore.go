package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// baseStore keeps base tables, one file for each service and family.
//
// Saving waits for flush, so that packets feel a change before the disk does. A base that was not
// saved before a crash does no harm: the update from the one before gives the same again. Files
// carry a checksum and are not forced to the disk; after a power cut no flow is left that a
// fresh table could move.
type baseStore struct {
	dir     string
	pending map[string][]byte // by file name; nil = to be removed
}

func newBaseStore(dir string) *baseStore {
	return &baseStore{dir: dir, pending: make(map[string][]byte)}
}

var familyNames = [2]string{"v4", "v6"}

func baseName(service string, family int) string {
	return service + "." + familyNames[family]
}

// load returns a base and its stored form; found is false where there is none. A corrupt one is an
// error and a fresh base.
func (s *baseStore) load(name string) (base *sched.Base, stored []byte, found bool, err error) {
	base = new(sched.Base)
	data, ok := s.pending[name]
	if !ok {
		data, err = os.ReadFile(filepath.Join(s.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return base, nil, false, nil
		}
	}
	if err == nil && data == nil {
		return base, nil, false, nil
	}
	if err == nil {
		err = base.UnmarshalBinary(data)
	}
	if err != nil {
		return new(sched.Base), nil, false, fmt.Errorf("load table %s: %w", name, err)
	}
	return base, data, true, nil
}

// save keeps a base for flush, if it differs from its stored form.
func (s *baseStore) save(name string, base *sched.Base, stored []byte) error {
	data, err := base.MarshalBinary()
	if err != nil {
		return fmt.Errorf("save table %s: %w", name, err)
	}
	if !bytes.Equal(data, stored) {
		s.pending[name] = data
	}
	return nil
}

// remove forgets a base at the next flush.
func (s *baseStore) remove(name string) { s.pending[name] = nil }

// flush writes what was saved. What cannot be written stays pending and in force.
func (s *baseStore) flush() error {
	if len(s.pending) == 0 {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("save tables: %w", err)
	}
	var errs []error
	for name, data := range s.pending {
		if err := s.write(filepath.Join(s.dir, name), data); err != nil {
			errs = append(errs, err)
			if len(errs) > 3 { // the disk is full or read-only: the rest will say the same
				break
			}
			continue
		}
		delete(s.pending, name)
	}
	if len(errs) > 0 {
		return fmt.Errorf("save tables: %w", errors.Join(errs...))
	}
	return nil
}

// write replaces a file in one step, or removes it.
func (s *baseStore) write(path string, data []byte) error {
	if data == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	// One goroutine writes, so that one temporary name is enough; what a crash leaves is overwritten.
	tmp := filepath.Join(s.dir, ".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
