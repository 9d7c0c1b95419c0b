package test

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const instructionSize = 8

// A function of a BPF object, and how many instructions it may have.
type allowance struct {
	object, function string
	limit            uint64
}

// TestHotPathKeepsItsBudget compares the functions that every packet runs through with budget.txt, so that
// nobody makes the hot path longer in passing. A budget that is much too large is an error as well.
func TestHotPathKeepsItsBudget(t *testing.T) {
	for _, a := range allowances(t) {
		n := instructions(t, a.object, a.function)
		switch {
		case n > a.limit:
			t.Errorf("%s has %d instructions, %d are allowed: move what is rare into a function of its own, or raise the budget and say why", a.function, n, a.limit)
		case n < a.limit*9/10:
			t.Errorf("%s has %d instructions, %d are allowed: lower the budget", a.function, n, a.limit)
		}
	}
}

func allowances(t *testing.T) []allowance {
	t.Helper()
	f, err := os.Open("budget.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []allowance
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var a allowance
		if _, err := fmt.Sscan(lines.Text(), &a.object, &a.function, &a.limit); err != nil {
			t.Fatalf("budget.txt: %q: %v", lines.Text(), err)
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		t.Fatal("budget.txt allows nothing")
	}
	return out
}

// instructions returns the length of one function of a committed object.
func instructions(t *testing.T, object, function string) uint64 {
	t.Helper()
	f, err := elf.Open(filepath.Join("..", "bpf", object))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	for _, s := range symbols {
		if s.Name == function && elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			return s.Size / instructionSize
		}
	}
	t.Fatalf("%s has no function %s", object, function)
	return 0
}
