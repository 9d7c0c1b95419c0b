// Package diskfile replaces files so that a reader, or a start after a power cut, finds the old content or
// the new one.
package diskfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace writes data aside, to the disk, and renames it to path. The directory is made if it is missing, for
// the owner alone, as is the file. The name that it has meanwhile begins with a dot. Safe for concurrent
// use; of two that replace one file the last one to end wins.
func Replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tclb-*")
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
