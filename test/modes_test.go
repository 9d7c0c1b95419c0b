package test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testName is how docs/modes.md names what backs a cell. A number stands for a line of the list below the tables.
var (
	testName = regexp.MustCompile("`(Test\\w+)(?:/[^`]*)?`")
	noteMark = regexp.MustCompile(`\[(\d+)\]`)
	noteLine = regexp.MustCompile(`^(\d+)\. `)
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
)

// TestEveryCellOfTheModesIsTested holds docs/modes.md to its promise: each cell of its tables points to tests, and
// each of them is there.
func TestEveryCellOfTheModesIsTested(t *testing.T) {
	t.Parallel()
	have := testsOfTheTree(t)
	text, err := os.ReadFile("../docs/modes.md")
	if err != nil {
		t.Fatal(err)
	}
	notes := map[string]bool{} // by number: names a test that is there
	for line := range strings.Lines(string(text)) {
		m := noteLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		names := testName.FindAllStringSubmatch(line, -1)
		notes[m[1]] = len(names) > 0
		for _, name := range names {
			if !have[name[1]] {
				t.Errorf("note %s names %s, which is no test", m[1], name[1])
			}
		}
	}
	cells := 0
	for n, row := range tableRows(string(text)) {
		for i, cell := range row[1:] {
			cells++
			marks := noteMark.FindAllStringSubmatch(cell, -1)
			if len(marks) == 0 {
				t.Errorf("row %d (%s), column %d: %q names no test", n, row[0], i+1, cell)
			}
			for _, m := range marks {
				if !notes[m[1]] {
					t.Errorf("row %d (%s), column %d: note %s is missing or names no test", n, row[0], i+1, m[1])
				}
			}
		}
	}
	if cells < 50 {
		t.Errorf("the tables have %d cells: are they read at all?", cells)
	}
}

// tableRows returns the cells of all rows of Markdown tables, without their heads.
func tableRows(text string) (rows [][]string) {
	body := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, "|"):
			body = false
		case strings.HasPrefix(line, "|--"):
			body = true
		case body:
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// testsOfTheTree returns the names of all tests.
func testsOfTheTree(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			out[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
