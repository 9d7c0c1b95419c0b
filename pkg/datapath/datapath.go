// Package datapath is the proxy's and the plugin's side of the BPF maps and programs.
//
// It loads the objects of package bpf, pins them below a versioned directory of a bpffs, opens
// what is pinned there, and turns Go values into map records and back: the only place where
// byte order and struct layouts are known. Every method is safe for concurrent use by several
// processes as far as the kernel's maps are; where an order of writes matters the method says so.
package datapath

import (
	"errors"
	"fmt"
)

// LayoutVersion is N of the pin directory v<N>. It rises when a shared struct changes in a
// way that programs of the version before would misread.
const LayoutVersion = 5

// DefaultBPFFS is where pins live unless the caller says otherwise.
const DefaultBPFFS = "/sys/fs/bpf/tclb"

// ErrNotLoaded is returned by Open where nothing is pinned yet.
var ErrNotLoaded = errors.New("datapath is not loaded")

// ErrNotFound is returned for a map entry that does not exist.
var ErrNotFound = errors.New("no such entry")

// ErrFull is returned when a map has no room for another entry.
var ErrFull = errors.New("map is full")

// LayoutError says that only pins of another layout were found. Nothing was changed.
type LayoutError struct {
	Dir   string
	Found int // version in Dir
	Want  int // version of this binary
}

// Error names both versions and the way out.
func (e *LayoutError) Error() string {
	return fmt.Sprintf("%s holds map layout v%d, this binary needs v%d: install the tclb that matches, or run that version's `tclb uninstall` first", e.Dir, e.Found, e.Want)
}

// Sizes are decided when the maps are made. The zero value of a field means its default.
type Sizes struct {
	MaxServices  uint32 `json:"maxServices"`  // default 65536
	MaxBackends  uint32 `json:"maxBackends"`  // default 262144
	TableSlots   uint32 `json:"tableSlots"`   // default 4194304
	MaxConntrack uint32 `json:"maxConntrack"` // pairs of the main room; default 262144
}

// MaxGroups is how many group ids there are for services of that number, from 1 on.
func (s Sizes) MaxGroups() uint32 { return groupsPerService * s.WithDefaults().MaxServices }

// WithDefaults returns s with zero fields replaced by the defaults.
func (s Sizes) WithDefaults() Sizes {
	def := func(v *uint32, d uint32) {
		if *v == 0 {
			*v = d
		}
	}
	def(&s.MaxServices, 65536)
	def(&s.MaxBackends, 262144)
	def(&s.TableSlots, 4194304)
	def(&s.MaxConntrack, 262144)
	return s
}
