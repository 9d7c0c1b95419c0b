package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// mutant is one small mistake, and the tests that must notice it.
type mutant struct {
	name string
	item string // what is broken by it, a word of items
	file string // from the top of the tree
	old  string // found exactly once in the file; any white space stands for any other
	new  string
	pkg  string   // of the tests, as the go command takes it
	test []string // one of these must fail
	at   string   // file:line of the list, for messages
}

// items are the subjects that mutants are kept for. Each has one at least.
var items = []string{
	"hairpin", "icmp", "tcp-state", "rooms", "pairs", "sweep", "generations", "refusals", "udp", "dsr",
	"access", "fragments", "parse", "selection", "reconcile", "config", "drain",
	"schedulers", "affinity", "latency", "counts", "outlier", "tunnel", "uplink", "modes", "vlan",
}

// readLists reads every list of a directory, in the order of their names.
func readLists(dir string) ([]mutant, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var all []mutant
	var errs []error
	names := make(map[string]string)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read mutants: %w", err)
		}
		found, err := parseList(filepath.Base(path), string(text))
		errs = append(errs, err)
		for _, m := range found {
			if first := names[m.name]; first != "" {
				errs = append(errs, fmt.Errorf("%s: mutant %s is at %s already", m.at, m.name, first))
			}
			names[m.name] = m.at
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		errs = append(errs, fmt.Errorf("no mutants in %s", dir))
	}
	return all, errors.Join(errs...)
}

// parseList reads one list. Its grammar is in README.md.
func parseList(name, text string) ([]mutant, error) {
	var all []mutant
	var errs []error
	var old, fresh []string
	var m mutant
	end := func() {
		if m.name == "" {
			return
		}
		m.old, m.new = strings.Join(old, "\n"), strings.Join(fresh, "\n")
		if err := m.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: mutant %s: %w", m.at, m.name, err))
		}
		all = append(all, m)
		m, old, fresh = mutant{}, nil, nil
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		fields := strings.Fields(rest)
		switch {
		case word == "" || word[0] == '#':
		case word == "mutant" && len(fields) == 2:
			end()
			m = mutant{name: fields[0], item: fields[1], at: fmt.Sprintf("%s:%d", name, n)}
		case word == "file" && len(fields) == 1:
			m.file = fields[0]
		case word == "-":
			old = append(old, rest)
		case word == "+":
			fresh = append(fresh, rest)
		case word == "test" && len(fields) > 1:
			m.pkg, m.test = fields[0], fields[1:]
		default:
			errs = append(errs, fmt.Errorf("%s:%d: %q is no line of a mutant", name, n, lines.Text()))
		}
	}
	end()
	return all, errors.Join(append(errs, lines.Err())...)
}

func (m mutant) check() error {
	switch {
	case !slices.Contains(items, m.item):
		return fmt.Errorf("item %q is none of %q", m.item, items)
	case m.file == "" || m.pkg == "":
		return errors.New("file or test is missing")
	case strings.TrimSpace(m.old) == "":
		return errors.New("old text (-) is missing")
	case m.old == m.new:
		return errors.New("old and new text are the same")
	}
	return nil
}

// apply returns the file's text with the mutant in it.
func (m mutant) apply(text string) (string, error) {
	words := strings.Fields(m.old)
	for i := range words {
		words[i] = regexp.QuoteMeta(words[i])
	}
	places := regexp.MustCompile(strings.Join(words, `\s+`)).FindAllStringIndex(text, -1)
	if len(places) != 1 {
		return "", fmt.Errorf("%s: mutant %s: old text is %d times in %s, want once:\n%s", m.at, m.name, len(places), m.file, m.old)
	}
	return text[:places[0][0]] + m.new + text[places[0][1]:], nil
}

// generates says whether the mutant's file is C, so that the BPF objects must be made anew.
func (m mutant) generates() bool {
	return strings.HasPrefix(m.file, "bpf/") && (strings.HasSuffix(m.file, ".c") || strings.HasSuffix(m.file, ".h"))
}
