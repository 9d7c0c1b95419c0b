package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// AttachNone is the Attach of an endpoint without programs: its proxy carries connections itself.
const AttachNone = "none"

// ModeUserspace is the mode of a proxy that carries connections itself. Any other leaves that to programs.
const ModeUserspace = "userspace"

// modeFile says how the proxy carries packets. It stays while the proxy is stopped: containers start then too.
const modeFile = "mode"

// PutMode leaves word of the proxy's mode for the plugin, in one step.
func (d *Dir) PutMode(mode string) error {
	tmp := filepath.Join(d.path, "."+modeFile)
	err := os.WriteFile(tmp, []byte(mode+"\n"), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(d.path, modeFile))
	}
	if err != nil {
		return fmt.Errorf("write the proxy's mode: %w", err)
	}
	return nil
}

// Mode returns what the last proxy left, "" where there was none.
func (d *Dir) Mode() (string, error) {
	data, err := os.ReadFile(filepath.Join(d.path, modeFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the proxy's mode: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
