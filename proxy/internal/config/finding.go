package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The keys of findings that concern no key of the file.
const (
	keyFile = "file" // the file itself: too large, not readable, not UTF-8
	keyYAML = "yaml" // its syntax, or the document as a whole
)

// maxFindings bounds what one file can make tclb print and keep: the rest is cut off, and says so.
const maxFindings = 1000

// Finding is one mistake in a file, at the place where the user has to change something.
//
// The place is the wrong value; the key where the key is unknown; the second of two that clash.
type Finding struct {
	File   string `json:"file"`   // as it was named to this package
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // from 1, in characters
	Key    string `json:"key"`    // a path such as services[0].backends[1].weight; "file" or "yaml" for the whole
	Reason string `json:"reason"` // one line: what is wrong, then what to do
}

// String returns "file:line:column: key: reason", the form of every log line and listing.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", printable(f.File), f.Line, f.Column, f.Key, f.Reason)
}

// position is a place in a file, both counted from 1.
type position struct{ line, column int }

// start is the position of findings about a whole file.
var start = position{1, 1}

// report collects the findings of one file.
type report struct {
	file     string
	findings []Finding
	cut      bool
}

// add records a finding. Reasons quote user input with show, so that they stay on one line.
func (r *report) add(at position, key, reason string) {
	if len(r.findings) == maxFindings {
		r.cut = true
		return
	}
	r.findings = append(r.findings, Finding{r.file, at.line, at.column, key, reason})
}

// sorted returns the findings in the order of the file.
func (r *report) sorted() []Finding {
	slices.SortStableFunc(r.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if r.cut {
		last := r.findings[len(r.findings)-1]
		r.findings = append(r.findings, Finding{
			r.file, last.Line, last.Column, keyFile,
			fmt.Sprintf("more than %d findings: the rest is not shown", maxFindings),
		})
		r.cut = false
	}
	return r.findings
}

// show quotes user input for a reason: on one line, and short.
func show(s string) string {
	const longest = 64
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return strconv.Quote(s)
}

// printable returns s as it is if it is harmless in a line of text, else quoted.
func printable(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return show(s)
	}
	return s
}
