// Package test checks the rules of ARCHITECTURE.md that a compiler does not: who imports whom, what
// the plugin links, how long names and files may be.
package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

const module = "github.com/tc-loadbalancer/tclb"

// Limits that keep a file readable in one sitting.
const (
	goFileLines    = 400
	goFuncLines    = 50
	cHeaderLines   = 300
	cFuncLines     = 60
	kernelNameSize = 15 // the kernel cuts object names after this many bytes
)

// goPackage is what `go list -json` says about a package.
type goPackage struct {
	ImportPath   string
	Dir          string
	Standard     bool
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	Deps         []string
}

func TestDependenciesPointOneWay(t *testing.T) {
	kernel := []string{"github.com/cilium/ebpf", "github.com/vishvananda/netlink", module + "/bpf"}
	rules := []struct {
		pkg  string   // the package, or with /... all below it
		only []string // what it may import besides the standard library; nil = anything
		not  []string // what it must not even link
	}{
		{pkg: "bpf", only: []string{"github.com/cilium/ebpf"}},
		{pkg: "pkg/lb", only: []string{}},
		{pkg: "pkg/sched", only: []string{module + "/pkg/lb"}, not: []string{"log/slog", "net/http"}},
		{pkg: "pkg/packet", only: []string{"github.com/gopacket/gopacket", module + "/pkg/lb"}, not: kernel},
		{pkg: "pkg/datapath", not: inModule("pkg/registry", "pkg/overlay", "proxy", "plugin")},
		{pkg: "pkg/datapath/memory", only: inModule("pkg/datapath", "pkg/lb")},
		{pkg: "pkg/attach", not: inModule("pkg/registry", "pkg/overlay", "proxy", "plugin")},
		{pkg: "pkg/registry", not: append(inModule("pkg/datapath", "pkg/attach", "proxy", "plugin"), kernel...)},
		{pkg: "pkg/overlay", not: append(inModule("bpf", "pkg/datapath", "pkg/attach", "pkg/registry", "proxy", "plugin"), "github.com/cilium/ebpf")},
		{pkg: "plugin", not: inModule("proxy")},
		{pkg: "proxy/...", not: inModule("plugin")},
		{pkg: "proxy/internal/cluster", not: append(inModule("pkg/datapath", "pkg/attach", "proxy/internal/reconcile"), kernel...)},
		{pkg: "proxy/internal/reconcile", not: []string{"go.etcd.io", "go.uber.org"}},
		{pkg: "proxy/internal/relay", only: []string{module + "/pkg/lb", "golang.org/x/sys/unix"}},
		{pkg: "proxy/internal/userspace", only: inModule("pkg/datapath", "pkg/lb", "pkg/sched"), not: []string{"github.com/vishvananda/netlink", "net/http"}},
		{pkg: "proxy/internal/state", not: []string{"go.etcd.io", "go.uber.org"}},
	}
	packages := list(t, "./...")
	for _, rule := range rules {
		matched := false
		for _, p := range packages {
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			if name != rule.pkg && !(strings.HasSuffix(rule.pkg, "/...") && below(name, strings.TrimSuffix(rule.pkg, "/..."))) {
				continue
			}
			matched = true
			for _, imported := range p.Imports {
				if rule.only != nil && !standard(imported) && !belowAny(imported, rule.only) {
					t.Errorf("%s imports %s: it may import %q only", name, imported, rule.only)
				}
			}
			for _, dep := range p.Deps {
				if belowAny(dep, rule.not) {
					t.Errorf("%s depends on %s", name, dep)
				}
			}
		}
		if !matched {
			t.Errorf("the rule for %s matches no package", rule.pkg)
		}
	}
}

// tclb-cni starts for every container, so what it links is paid for each time.
func TestPluginLinksNoServer(t *testing.T) {
	forbidden := []string{
		"net/http", "crypto/tls", "html/template", "go.yaml.in", "gopkg.in/yaml.v3", "github.com/prometheus",
		"github.com/spf13", "go.etcd.io", "google.golang.org/grpc", "testing",
	}
	direct := []string{
		module, "github.com/cilium/ebpf", "github.com/containernetworking", "github.com/vishvananda", "golang.org/x/sys",
	}
	p := list(t, "./plugin")[0]
	for _, dep := range p.Deps {
		if belowAny(dep, forbidden) {
			t.Errorf("tclb-cni links %s", dep)
		}
	}
	for _, imported := range p.Imports {
		if !standard(imported) && !belowAny(imported, direct) {
			t.Errorf("plugin imports %s, which is not one of the libraries in ARCHITECTURE.md", imported)
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for _, p := range list(t, "./...") {
		files := p.GoFiles
		if len(files) == 0 {
			files = slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		}
		var commented []string
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil && strings.TrimSpace(file.Doc.Text()) != "" {
				commented = append(commented, name)
			}
		}
		if len(commented) != 1 {
			t.Errorf("%s has %d package comments %q, want one", p.ImportPath, len(commented), commented)
		}
	}
}

func TestNoPackageIsABag(t *testing.T) {
	for _, p := range list(t, "./...") {
		base := p.ImportPath[strings.LastIndexByte(p.ImportPath, '/')+1:]
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "manager", "misc"}, base) {
			t.Errorf("%s: name what the package does", p.ImportPath)
		}
	}
}

func TestGoFilesAndFunctionsAreShort(t *testing.T) {
	var tooLong []string // exceptions; keep it empty
	walk(t, "..", ".go", func(path string, text []byte) {
		if generated(text) || slices.Contains(tooLong, path) {
			return
		}
		if n := bytes.Count(text, []byte("\n")); n >= goFileLines {
			t.Errorf("%s has %d lines, want under %d", path, n, goFileLines)
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		if strings.HasSuffix(path, "_test.go") {
			return // a table of cases may be as long as there are cases
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			if n := set.Position(f.Body.Rbrace).Line - set.Position(f.Pos()).Line + 1; n >= goFuncLines {
				t.Errorf("%s: %s has %d lines, want under %d", path, f.Name.Name, n, goFuncLines)
			}
		}
	})
}

func TestKernelSeesWholeNames(t *testing.T) {
	objects, err := filepath.Glob("../bpf/*_bpfel.o")
	if err != nil || len(objects) == 0 {
		t.Fatalf("no objects: %v", err)
	}
	for _, path := range objects {
		spec, err := ebpf.LoadCollectionSpec(path)
		if err != nil {
			t.Fatal(err)
		}
		check := func(kind, name string) {
			// Sections of constants are named by the compiler.
			if len(name) > kernelNameSize && !strings.HasPrefix(name, ".") {
				t.Errorf("%s: %s %q has %d bytes, want at most %d", filepath.Base(path), kind, name, len(name), kernelNameSize)
			}
		}
		for name := range spec.Maps {
			check("map", name)
		}
		for name := range spec.Programs {
			check("program", name)
		}
		for name := range spec.Variables {
			if !strings.HasPrefix(name, "export_") { // carriers of type information; no program has them
				check("variable", name)
			}
		}
	}
}

var (
	includeGuard = regexp.MustCompile(`^#ifndef TCLB_[A-Z0-9_]+_H$`)
	conditional  = regexp.MustCompile(`^\s*#\s*(if|ifdef|ifndef|elif|else)\b`)
	cFunction    = regexp.MustCompile(`(\w+)\(`)
)

// Configuration is read-only data, so there is one object per hook and no variant that nobody builds.
func TestCHasNoVariants(t *testing.T) {
	eachC(t, func(path string, text []byte) {
		guards := 0
		for i, line := range lines(text) {
			if includeGuard.MatchString(line) {
				guards++
			} else if conditional.MatchString(line) {
				t.Errorf("%s:%d: %s: configuration is data, not conditional compilation", path, i+1, line)
			}
		}
		if want := map[string]int{".h": 1, ".c": 0}[filepath.Ext(path)]; guards != want {
			t.Errorf("%s has %d include guards, want %d", path, guards, want)
		}
	})
}

func TestCIsShort(t *testing.T) {
	eachC(t, func(path string, text []byte) {
		all := lines(text)
		// The map ABI is one subject, explained field by field.
		if n := len(all); strings.HasSuffix(path, ".h") && n > cHeaderLines && filepath.Base(path) != "types.h" {
			t.Errorf("%s has %d lines, want at most %d", path, n, cHeaderLines)
		}
		begin, name := -1, ""
		for i, line := range all {
			switch {
			case line == "{":
				begin = i
				for j := i - 1; j >= 0 && name == ""; j-- {
					if m := cFunction.FindStringSubmatch(all[j]); m != nil && !strings.HasPrefix(all[j], "\t") {
						name = m[1]
					}
				}
			case line == "}" && begin >= 0:
				if n := i - begin + 1; n >= cFuncLines {
					t.Errorf("%s: %s has %d lines, want under %d", path, name, n, cFuncLines)
				}
				begin, name = -1, ""
			}
		}
	})
}

func TestEverySourceNamesItsLicence(t *testing.T) {
	eachC(t, func(path string, text []byte) {
		head := strings.Join(lines(text)[:2], "\n")
		if !strings.Contains(head, "SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)") {
			t.Errorf("%s has no SPDX line at its head", path)
		}
	})
}

// list returns what the go command knows about our packages.
func list(t *testing.T, patterns ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,TestGoFiles,XTestGoFiles,Imports,Deps"}, patterns...)...)
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func walk(t *testing.T, root, ext string, visit func(path string, text []byte)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && path != root || slices.Contains([]string{"include", "out", "testdata", "bin"}, entry.Name())) {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ext {
			return nil
		}
		text, err := os.ReadFile(path)
		if err == nil {
			visit(path, text)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// eachC visits our BPF sources, not the headers that come from elsewhere.
func eachC(t *testing.T, visit func(path string, text []byte)) {
	t.Helper()
	seen := 0
	for _, ext := range []string{".c", ".h"} {
		walk(t, "../bpf", ext, func(path string, text []byte) { seen++; visit(path, text) })
	}
	if seen == 0 {
		t.Fatal("no C found")
	}
}

func lines(text []byte) []string {
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		all = append(all, s.Text())
	}
	return all
}

func generated(text []byte) bool {
	head, _, _ := bytes.Cut(text, []byte("\npackage "))
	return bytes.Contains(head, []byte("DO NOT EDIT."))
}

func inModule(paths ...string) []string {
	for i := range paths {
		paths[i] = module + "/" + paths[i]
	}
	return paths
}

// standard says whether a package is of the standard library: those have no dot in their first element.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func belowAny(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return below(path, root) })
}
