package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// baseStore keeps base tables, one file for each service and family. Safe for concurrent use.
//
// Saving waits for flush, so that packets feel a change before the disk does. A base that was not
// saved before a crash does no harm: the update from the one before gives the same again. Files
// carry a checksum and are not forced to the disk; after a power cut no flow is left that a
// fresh table could move.
type baseStore struct {
	dir      string
	flushing sync.Mutex // held by who writes files

	mu      sync.Mutex        // guards pending
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
	s.mu.Lock()
	data, ok := s.pending[name]
	s.mu.Unlock()
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

// save keeps a base for flush, if it differs from its stored form, and returns that of now.
func (s *baseStore) save(name string, base *sched.Base, stored []byte) ([]byte, error) {
	data, err := base.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("save table %s: %w", name, err)
	}
	if !bytes.Equal(data, stored) {
		s.set(name, data)
	}
	return data, nil
}

// remove forgets a base at the next flush.
func (s *baseStore) remove(name string) { s.set(name, nil) }

func (s *baseStore) set(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[name] = data
}

// flush writes what was saved up to now and returns how many files that were. What cannot be written
// stays pending and in force.
func (s *baseStore) flush() (int, error) {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	todo := maps.Clone(s.pending)
	s.mu.Unlock()
	if len(todo) == 0 {
		return 0, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return 0, fmt.Errorf("save tables: %w", err)
	}
	var errs []error
	done := 0
	for name, data := range todo {
		if err := s.write(filepath.Join(s.dir, name), data); err != nil {
			errs = append(errs, err)
			if len(errs) > maxFlushErrors {
				break
			}
			continue
		}
		done++
		s.written(name, data)
	}
	if len(errs) > 0 {
		return done, fmt.Errorf("save tables: %w", errors.Join(errs...))
	}
	return done, nil
}

// maxFlushErrors ends a flush: the disk is full or read-only, and the rest would say the same.
const maxFlushErrors = 3

// written forgets what is in the file now, unless it was saved anew meanwhile.
func (s *baseStore) written(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.pending[name]; ok && bytes.Equal(now, data) && (now == nil) == (data == nil) {
		delete(s.pending, name)
	}
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
