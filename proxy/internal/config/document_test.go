package config

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The library's message has no column and often the wrong line: this fails should a new version
// keep its marks elsewhere (see syntaxPosition).
func TestSyntaxErrorsHaveAPosition(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"list not closed", "a: [1", `2:1: yaml: did not find expected ',' or ']'`},
		{"brace not closed", "services:\n- name: web\n  ports:\n  - {port: 80\n  dsr: true\n", `5:6: yaml: did not find expected ',' or '}'`},
		{"wrong indentation", "services:\n- name: web\n  backends:\n  - {address: 10.88.0.1}\n    state: draining\n", "5:5: yaml: did not find expected key"},
		{"tab", "services:\n- name: x\n\tports: 1\n", "3:1: yaml: a tab: YAML wants spaces here"},
		{"map inside a line", "a: b: c\n", "1:5: yaml: mapping values are not allowed in this context"},
		{"address that needs quotes", "a: [::1]\n", "1:5: yaml: did not find expected node content: put the value in quotes"},
		{"quote not closed", "a: 'x\n\nb\n", "4:1: yaml: found unexpected end of stream"},
		{"unknown alias", "a: 1\nb: *x\n", "2:4: yaml: unknown anchor 'x' referenced"},
		{"alias of itself", "a: &a [*a]\n", `1:8: yaml: alias "a" contains itself`},
		{"two documents", "services: []\n---\nservices: []\n", "2:1: yaml: a second document starts here: a file holds one, put this one into a file of its own"},
		{"second document broken", "services: []\n--- [\n", "3:1: yaml: did not find expected node content"},
		{"list at the top", "- name: web\n", "1:1: yaml: want a map (key: value), got a list"},
		{"text at the top", "hello\n", `1:1: yaml: want a map (key: value), got "hello"`},
		{"not UTF-8", "a: 1\nä: \xff\n", "2:4: file: byte 0xff is not UTF-8: save the file as UTF-8"},
		{"UTF-16", "\xff\xfea\x00", "1:1: file: byte 0xff is not UTF-8: save the file as UTF-8"},
		{"control character", "a: 1\r\nb: x\x00\n", "2:5: file: control character U+0000: remove it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			expect(t, ParseServices("f", "f", []byte(tt.text)).Findings, "f:"+tt.want)
		})
	}
}

func TestTooLargeFileIsRefused(t *testing.T) {
	text := "services: []\n" + strings.Repeat("#", MaxFileSize)
	expect(t, ParseServices("f", "f", []byte(text)).Findings, "f:1:1: file: file is larger than 8 MiB: split it")
	expect(t, ParseServices("f", "f", []byte(text[:MaxFileSize])).Findings, "")
}

// Nine lines that stand for 10^9 values must cost nothing and say where they are.
func TestAliasBombIsRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), i-1)
	}
	began := time.Now()
	got := ParseServices("f", "f", []byte(b.String())).Findings
	expect(t, got, "f:7:38: yaml: aliases expand to more than 8388608 values: write them out")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	for _, open := range []string{"[", "{a: ", "- "} {
		got := ParseServices("f", "f", []byte("services: \n"+strings.Repeat(open, 200_000))).Findings
		if len(got) == 0 {
			t.Errorf("%q: no finding", open)
		}
	}
}
