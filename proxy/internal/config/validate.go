package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Validate reads files as the proxy would at its start, and returns their findings file by file, in the
// order given. Each is a services file or a tclb.yaml. The services files must also fit beside each
// other and a tclb.yaml: the one among the files, else this node's.
//
// The error names the files that are not there or may not be read; the findings of the others
// are returned besides.
func Validate(paths []string, here Here) ([]Finding, error) {
	v := validation{findings: make(map[string][]Finding, len(paths))}
	var errs []error
	var order []string
	for _, path := range paths {
		if slices.Contains(order, path) {
			continue
		}
		order = append(order, path)
		if err := v.read(path); err != nil {
			errs = append(errs, fmt.Errorf("validate: %w", err))
		}
	}
	if v.settings == nil && !v.wrong && here.Config != "" {
		v.settings, v.wrong = settingsAt(here.Config)
	}
	env := v.surroundings()
	env.Device = here.Device
	_, clashes := Merge(nil, v.services, env)
	for _, f := range clashes {
		v.findings[f.File] = append(v.findings[f.File], f)
	}
	var out []Finding
	for _, path := range order {
		out = append(out, v.findings[path]...)
	}
	return out, errors.Join(errs...)
}

// Here is what the node where files are validated has.
type Here struct {
	Config string                 // path of its tclb.yaml, which need not be there; "" = none
	Device func(name string) bool // whether it has a device; nil = any
}

// validation is one run of Validate.
type validation struct {
	findings map[string][]Finding // by path
	services []File
	settings *Config // the last valid tclb.yaml, if any
	wrong    bool    // there is one with mistakes
}

// settingsAt returns a tclb.yaml that is there and without mistakes, and whether it is one with mistakes.
func settingsAt(path string) (c *Config, wrong bool) {
	data, err := readRegular(path)
	if err != nil {
		return nil, false
	}
	c, findings := Parse(path, data)
	if c == nil || len(findings) > 0 {
		return nil, true
	}
	return c, false
}

// read parses one file as what it is.
func (v *validation) read(path string) error {
	data, err := readRegular(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return err
	case err != nil:
		v.services = append(v.services, unreadable(path, path, err))
	case isServicesFile(path, data):
		v.services = append(v.services, ParseServices(path, path, data))
	default:
		c, findings := Parse(path, data)
		if c != nil {
			findings = c.checkEtcd()
			v.settings = c
		}
		v.wrong = v.wrong || c == nil
		v.findings[path] = findings
	}
	return nil
}

// surroundings are what the settings say. Where there are none, the pool suits everything and any node may be known,
// but there are no uplinks, as by default.
func (v *validation) surroundings() Surroundings {
	if v.settings == nil {
		return Surroundings{NoUplinks: !v.wrong, Pool: []netip.Prefix{
			netip.PrefixFrom(netip.IPv4Unspecified(), 0),
			netip.PrefixFrom(netip.IPv6Unspecified(), 0),
		}}
	}
	return v.settings.Surroundings(v.settings.peerSubnets())
}

// isServicesFile tells the two kinds of file apart by their top-level keys. A file without any telling
// key is a services file, unless it is called like the other kind.
func isServicesFile(path string, data []byte) bool {
	root := parseDocument(&report{}, data)
	if root == nil || root.Kind != yaml.MappingNode {
		return filepath.Base(path) != filepath.Base(DefaultPath)
	}
	var keys []string
	for i := 0; i < len(root.Content); i += 2 {
		keys = append(keys, root.Content[i].Value)
	}
	if slices.Contains(keys, "services") {
		return true
	}
	if filepath.Base(path) == filepath.Base(DefaultPath) {
		return false
	}
	known := topLevelKeys()
	return !slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(known, k) })
}

// topLevelKeys returns the keys of tclb.yaml: those that its decoder asks for.
func topLevelKeys() []string {
	m := &mapping{cursor: cursor{rep: &report{}}}
	Default().read(m)
	return m.asked
}
