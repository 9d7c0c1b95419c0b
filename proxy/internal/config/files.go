package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Load reads tclb.yaml. Without findings and error it returns a Config: the defaults where the file
// is missing, unless explicit says that the user named it. An error means that it cannot be read.
func Load(path string, explicit bool) (*Config, []Finding, error) {
	data, err := readRegular(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit:
		return Default(), nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	c, findings := Parse(path, data)
	if c != nil {
		findings = c.checkEtcd()
	}
	if len(findings) > 0 {
		c = nil
	}
	return c, findings, nil
}

// ReadDir reads the services files of a directory, in lexical order. A file that cannot be read is
// one with a finding; an error concerns the directory itself.
//
// known are files of an earlier call: those with the same content are returned as they are, and of
// others the services that did not change, so a change costs what it changes. It may be nil.
func ReadDir(dir string, known []File) ([]File, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read services directory: %w", err)
	}
	before := byName(known)
	read := make([]*File, len(entries)) // nil: does not count
	var parsing errgroup.Group
	parsing.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range entries {
		if !Counts(e.Name()) {
			continue
		}
		parsing.Go(func() error {
			old, ok := before[e.Name()]
			read[i] = readFile(e.Name(), filepath.Join(dir, e.Name()), old, ok)
			return nil
		})
	}
	_ = parsing.Wait()
	var files []File
	for _, f := range read {
		if f != nil {
			files = append(files, *f)
		}
	}
	return files, nil
}

// readFile reads one file, of which old is what is known; nil if it was removed since it was listed.
func readFile(name, path string, old File, known bool) *File {
	data, err := readRegular(path)
	if _, gone := os.Lstat(path); err != nil && errors.Is(gone, fs.ErrNotExist) {
		return nil
	}
	f := old
	switch {
	case err != nil:
		f = unreadable(name, path, err)
	case known && old.Path == path && old.Data != nil && bytes.Equal(old.Data, data):
	case known && old.Path == path:
		f = ReparseServices(old, data)
	default:
		f = ParseServices(name, path, data)
	}
	return &f
}

// Counts says whether a base name is a services file's: *.yaml or *.yml, but no hidden file and no
// editor's backup.
func Counts(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
		return false
	}
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}

// unreadable is the File of a file that cannot be read.
func unreadable(name, path string, err error) File {
	rep := &report{file: path}
	var why *fs.PathError
	if errors.As(err, &why) {
		err = fmt.Errorf("%s: %w", why.Op, why.Err) // the path is in the finding already
	}
	rep.add(start, keyFile, "file cannot be read: "+printable(err.Error()))
	return File{Name: name, Path: path, Findings: rep.findings}
}

// readRegular reads a regular file, or what a symbolic link to one holds. Of a file that is too large
// it reads just enough for the parser to refuse it.
func readRegular(path string) ([]byte, error) {
	// A FIFO would block an ordinary open until somebody writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%s is no regular file", fileKind(info.Mode()))}
	}
	var buf bytes.Buffer
	buf.Grow(int(min(info.Size(), MaxFileSize)) + bytes.MinRead)
	_, err = buf.ReadFrom(io.LimitReader(f, MaxFileSize+1))
	return buf.Bytes(), err
}

// fileKind says what else a file can be.
func fileKind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

// byName indexes files by their name.
func byName(files []File) map[string]File {
	out := make(map[string]File, len(files))
	for _, f := range files {
		out[f.Name] = f
	}
	return out
}

// writeAtomic replaces a file in one step, so that a reader, or a start after a power cut, finds the
// old content or the new one. Missing directories are made, for the owner alone. The package's stores
// have one writer per directory, so one name is enough, and what a crash leaves is used again.
func writeAtomic(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".config-tmp"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// sortByName puts files into lexical order.
func sortByName(files []File) {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
}
