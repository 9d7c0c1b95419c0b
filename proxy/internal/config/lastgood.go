package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LastGood keeps the content of each services file that was accepted last, so that a file which is broken
// later changes nothing that runs, also when the proxy restarts meanwhile.
//
// It is a directory in the form of servicesDir. One goroutine at a time may use it.
type LastGood struct {
	dir   string
	saved map[string]string // content by file name, as on disk
}

// NewLastGood returns the store inside a state directory. Nothing is read or written yet.
func NewLastGood(stateDir string) *LastGood {
	return &LastGood{dir: filepath.Join(stateDir, "services.d")}
}

// Load returns the files that were accepted last, for Merge to start from. Files that this version
// does not understand any more are left out: then what the directory holds decides alone.
func (l *LastGood) Load() ([]File, error) {
	files, err := ReadDir(l.dir, nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("load last good services files: %w", err)
	}
	l.saved = make(map[string]string, len(files))
	var good []File
	for _, f := range files {
		l.saved[f.Name] = string(f.Data)
		if len(f.Findings) == 0 {
			good = append(good, f)
		}
	}
	return good, nil
}

// Save makes the store equal to the accepted files. It writes what changed and forgets files that are
// gone. It waits for the disk: call it after the change is in force, not before.
func (l *LastGood) Save(accepted []File) error {
	if l.saved == nil {
		if _, err := l.Load(); err != nil {
			return err
		}
	}
	var errs []error
	keep := make(map[string]bool, len(accepted))
	for _, f := range accepted {
		keep[f.Name] = true
		if old, ok := l.saved[f.Name]; ok && old == string(f.Data) {
			continue
		}
		if err := writeAtomic(filepath.Join(l.dir, f.Name), f.Data); err != nil {
			errs = append(errs, fmt.Errorf("save last good %s: %w", f.Name, err))
			continue
		}
		l.saved[f.Name] = string(f.Data)
	}
	for name := range l.saved {
		if keep[name] {
			continue
		}
		if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("forget last good %s: %w", name, err))
			continue
		}
		delete(l.saved, name)
	}
	return errors.Join(errs...)
}
