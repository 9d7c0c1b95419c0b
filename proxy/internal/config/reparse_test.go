package config

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// manyServices returns a file of n services, in the usual form, with vips and backends.
func manyServices(n int) []string {
	lines := []string{"# a file", "services:"}
	for i := range n {
		lines = append(lines,
			fmt.Sprintf("- name: s%d", i),
			fmt.Sprintf("  vips: [10.96.%d.%d]", i/250, i%250+1),
			"  ports:",
			"  - {name: http, port: 80, targetPort: 8080}",
			"  backends:")
		for b := range 5 {
			lines = append(lines, fmt.Sprintf("  - {address: 10.88.%d.%d, weight: 100}", i, b+1))
		}
	}
	return lines
}

// TestReparseIsParse edits a file at random, rightly and wrongly, and compares with reading it afresh.
func TestReparseIsParse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	edits := []string{
		"", "# comment", "  - {address: 10.89.0.1}", "- name: other", "  prot: 1", "\tx", "  scheduler: random", "---", "services:",
		"  vips: [10.96.0.3]", "- {name: flow, ports: [{port: 1}]}", `  "quoted`, "  &a x: 1", "    - deep", "-", "- ", "  vips: [", "é", "  allow: [10.0.0.0/8]",
	}
	shortcuts := 0
	for range 400 {
		lines := manyServices(8)
		before := ParseServices("a.yaml", "/a.yaml", []byte(strings.Join(lines, "\n")))
		for range 1 + r.IntN(3) {
			at := r.IntN(len(lines))
			switch r.IntN(4) {
			case 0:
				lines = append(lines[:at], lines[at+1:]...)
			case 1:
				lines[at] = strings.Replace(lines[at], "100", fmt.Sprint(r.IntN(1200)), 1)
			default:
				lines = append(lines[:at], append([]string{edits[r.IntN(len(edits))]}, lines[at:]...)...)
			}
		}
		text := []byte(strings.Join(lines, "\n"))
		if _, ok := reparse(before, text); ok {
			shortcuts++
		}
		got, want := ReparseServices(before, text), ParseServices("a.yaml", "/a.yaml", text)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("reading again differs from reading afresh\n%s\n got %d services, %v\nwant %d services, %v",
				text, len(got.Services), got.Findings, len(want.Services), want.Findings)
		}
	}
	if shortcuts < 30 {
		t.Errorf("the shortcut was taken %d times of 400", shortcuts)
	}
}

func BenchmarkOneChangeIn100Services(b *testing.B) {
	lines := manyServices(100)
	f := ParseServices("a.yaml", "/a.yaml", []byte(strings.Join(lines, "\n")))
	for i := range b.N {
		lines[len(lines)/2] = fmt.Sprintf("  - {address: 10.88.200.1, weight: %d}", i%1000+1)
		if f = ReparseServices(f, []byte(strings.Join(lines, "\n"))); len(f.Findings) > 0 {
			b.Fatal(f.Findings)
		}
	}
}
