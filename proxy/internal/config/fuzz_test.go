package config

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// seed adds what is worth mutating.
func seed(f *testing.F) {
	for _, text := range []string{
		valid, validTCLB, "", "~", "services: [&a {name: x}, *a]", "a: &a [*a]", "? [a]\n: b\n", "<<: {a: 1}", "%YAML 1.1\n---\na: 1\n...\n",
		"a: !!binary x", "a: |\n  x\n", "\ufeffa: 1", "services:\n\t- x", "a: \"\\x00\"", "services: [{ports: [{port: 1e3}, {port: 0x1}]}]", "- - - -",
	} {
		f.Add([]byte(text))
	}
}

// checkFindings fails on a finding that could not be printed on one line with a place in the file.
func checkFindings(t *testing.T, data []byte, findings []Finding) {
	t.Helper()
	for i, f := range findings {
		s := f.String()
		if f.Line < 1 || f.Column < 1 || f.Line > bytes.Count(data, []byte{'\n'})+bytes.Count(data, []byte{'\r'})+bytes.Count(data, []byte("\u0085"))+
			bytes.Count(data, []byte("\u2028"))+bytes.Count(data, []byte("\u2029"))+2 {
			t.Errorf("no place in the file: %s", s)
		}
		if f.Key == "" || f.Reason == "" || strings.ContainsAny(s, "\n\r\x00\x1b") {
			t.Errorf("not one line of text: %q", s)
		}
		if i > 0 && f.Line < findings[i-1].Line {
			t.Errorf("not in the order of the file: %s", s)
		}
	}
}

// FuzzServices looks for panics, and for accepted files that break what the rest of the proxy relies on.
func FuzzServices(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		began := time.Now()
		file := ParseServices("f", "f", data)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %s", took)
		}
		checkFindings(t, data, file.Findings)
		if len(file.Findings) > 0 {
			return
		}
		for _, s := range Services([]File{file}) {
			if s.Name == "" || len(s.Ports) == 0 || s.BoundedLoad <= 1 {
				t.Errorf("accepted: %+v", s)
			}
			for _, p := range s.Ports {
				if p.Port == 0 || p.TargetPort == 0 {
					t.Errorf("accepted port: %+v", p)
				}
			}
			for _, b := range s.Backends {
				if !b.Address.IsValid() || b.Address.Is4In6() || b.Weight < 0 || b.Weight > 1000 {
					t.Errorf("accepted backend: %+v", b)
				}
			}
		}
		// What was accepted is accepted again, beside itself as what runs, and means the same.
		again := ParseServices("f", "f", data)
		if d := diff(Services([]File{file}), Services([]File{again})); d != "" || len(again.Findings) > 0 {
			t.Errorf("read again: %v\n%s", again.Findings, d)
		}
		env := Surroundings{Pool: prefixes("10.96.0.0/16", "fd00:96::/64")}
		accepted, findings := Merge(nil, []File{file}, env)
		if len(accepted) != 1 || len(findings) > 0 {
			t.Errorf("alone in a directory: %v", findings)
		}
		if _, findings := Merge(accepted, []File{again}, env); len(findings) > 0 {
			t.Errorf("while it runs: %v", findings)
		}
	})
}

// FuzzSettings looks for panics, and for accepted settings without which the proxy cannot start.
func FuzzSettings(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, findings := Parse("f", data)
		checkFindings(t, data, findings)
		if (c == nil) != (len(findings) > 0) {
			t.Fatalf("settings %v with findings %v", c, findings)
		}
		if c == nil {
			return
		}
		if c.Datapath.MaxServices < 1 || c.Conntrack.UDP <= 0 || c.Tunnel.Port == 0 || len(c.Datapath.HairpinAddress) != 2 || c.ServicesDir == "" {
			t.Errorf("accepted: %+v", c)
		}
		if keys := c.RestartKeys(c); len(keys) > 0 {
			t.Errorf("differs from itself: %v", keys)
		}
	})
}
