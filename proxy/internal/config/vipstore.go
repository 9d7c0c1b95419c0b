package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
)

// VIPStore keeps the VIPs of services that name none, so that they survive a restart.
//
// The file is vips.json in the state directory. One goroutine at a time may use it.
type VIPStore struct {
	path  string
	saved []byte // as on disk
}

// vipFile is the form of vips.json.
type vipFile struct {
	VIPs map[string][]netip.Addr `json:"vips"`
}

// NewVIPStore returns the store inside a state directory. Nothing is read or written yet.
func NewVIPStore(stateDir string) *VIPStore {
	return &VIPStore{path: filepath.Join(stateDir, "vips.json")}
}

// Load returns the VIPs by service name, none if nothing was saved yet. After an error one can go on
// without them: the same names lead to nearly the same VIPs.
func (s *VIPStore) Load() (map[string][]netip.Addr, error) {
	data, err := readRegular(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f vipFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return nil, fmt.Errorf("load assigned VIPs from %s: %w", s.path, err)
	}
	s.saved = data
	return f.VIPs, nil
}

// Save writes the VIPs if they differ from what is saved.
func (s *VIPStore) Save(vips map[string][]netip.Addr) error {
	data, err := json.MarshalIndent(vipFile{vips}, "", "  ") // maps are written in the order of keys
	if err != nil {
		return fmt.Errorf("save assigned VIPs: %w", err)
	}
	data = append(data, '\n')
	if bytes.Equal(data, s.saved) {
		return nil
	}
	if err := writeAtomic(s.path, data); err != nil {
		return fmt.Errorf("save assigned VIPs to %s: %w", s.path, err)
	}
	s.saved = data
	return nil
}
