package runtimes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// cache keeps learned labels over a restart of the proxy: until runtimes have answered, containers
// stay in the services that their labels named. It is bound to attachments, so a reboot empties it.
type cache struct {
	stateDir string
}

// cached is one endpoint in the file.
type cached struct {
	Created time.Time `json:"created"`
	Labels  Labels    `json:"labels"`
}

func (c cache) path() string { return filepath.Join(c.stateDir, "labels.json") }

// load reads the file; a missing one is empty.
func (c cache) load() (map[string]cached, error) {
	data, err := os.ReadFile(c.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out map[string]cached
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("load labels: %w", err)
	}
	return out, nil
}

// save replaces the file in one step. It holds only what has labels of ours.
func (c cache) save(known map[string]*lesson) error {
	out := make(map[string]cached)
	for id, k := range known {
		if !k.labels.empty() {
			out[id] = cached{Created: k.created, Labels: k.labels}
		}
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err == nil {
		err = os.MkdirAll(c.stateDir, 0o700)
	}
	tmp := filepath.Join(c.stateDir, ".labels.json")
	if err == nil {
		err = os.WriteFile(tmp, append(data, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, c.path())
	}
	if err != nil {
		return fmt.Errorf("save labels: %w", err)
	}
	return nil
}
