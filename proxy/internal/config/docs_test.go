package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Readers copy from the docs: whole services, and single keys, which stand alone on an indented line or
// between backquotes.
var (
	sampleKey = regexp.MustCompile("(?m)(?:^ {4}|`)(" +
		"scheduler|boundedLoad|affinity|members|networks|healthCheck|outlier|timeouts|allow|dsr|accelerate|" +
		"node|servicesDir|datapath|listen|vipPool|uplinks|announce|tunnel|nodes|etcd|conntrack" +
		"): ([^`\n]+)(?:`|$)")
	settingsKey = regexp.MustCompile(`^(node|servicesDir|datapath|listen|vipPool|uplinks|announce|tunnel|nodes|etcd|conntrack)$`)
)

func TestSamplesInTheDocsAreValid(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, page := range append(pages, filepath.Join(root, "README.md"), filepath.Join(root, "ARCHITECTURE.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(page)
		for _, sample := range sampleServices(string(text)) {
			seen["services"] = true
			expectSample(t, name, "services", sample)
		}
		for _, m := range sampleKey.FindAllStringSubmatch(string(text), -1) {
			seen[m[1]] = true
			expectSample(t, name, m[1], m[1]+": "+m[2]+"\n")
		}
	}
	for _, key := range []string{"services", "affinity", "healthCheck", "outlier", "listen"} {
		if !seen[key] {
			t.Errorf("no sample of %s was found: the docs are written otherwise now", key)
		}
	}
}

// sampleServices returns the lists of services in a page, from their key to the first line that is less
// indented.
func sampleServices(text string) []string {
	var out []string
	var indent string
	inside := false
	for line := range strings.Lines(text) {
		if rest := strings.TrimLeft(line, " "); rest == "services:\n" {
			indent, inside = line[:len(line)-len(rest)], true
			out = append(out, rest)
			continue
		}
		rest, indented := strings.CutPrefix(line, indent)
		inside = inside && indented && (strings.HasPrefix(rest, "- ") || strings.HasPrefix(rest, "  "))
		if inside {
			out[len(out)-1] += rest
		}
	}
	return out
}

// expectSample parses a sample as what it belongs to.
func expectSample(t *testing.T, page, key, sample string) {
	t.Helper()
	var findings []Finding
	switch {
	case settingsKey.MatchString(key):
		_, findings = Parse(page, []byte(sample))
	case key == "services":
		findings = ParseServices(page, page, []byte(sample)).Findings
	default:
		findings = ParseServices(page, page, []byte("services:\n- name: a\n  ports: [{port: 80}]\n  "+sample)).Findings
	}
	for _, f := range findings {
		t.Errorf("%s: %s: %v\n%s", page, key, f, sample)
	}
}
