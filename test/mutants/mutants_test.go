package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const top = "../.."

// A list that does not fit the sources says nothing about their tests, and is noticed here first.
func TestListsFitTheSources(t *testing.T) {
	all, err := readLists("list")
	if err != nil {
		t.Fatal(err)
	}
	missing := make(map[string]bool)
	for _, item := range items {
		missing[item] = true
	}
	for _, m := range all {
		delete(missing, m.item)
		text, err := os.ReadFile(filepath.Join(top, m.file))
		if err != nil {
			t.Errorf("%s: %v", m.at, err)
			continue
		}
		if _, err := m.apply(string(text)); err != nil {
			t.Error(err)
		}
		expectTests(t, m)
	}
	for item := range missing {
		t.Errorf("no mutant for %s", item)
	}
}

// expectTests checks that a mutant's tests are written.
func expectTests(t *testing.T, m mutant) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(top, m.pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var source []byte
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	for _, name := range m.test {
		if !regexp.MustCompile(`(?m)^func ` + name + `\(t \*testing\.T\)`).Match(source) {
			t.Errorf("%s: mutant %s: %s has no %s", m.at, m.name, m.pkg, name)
		}
	}
}

func TestWrongListsAreRefused(t *testing.T) {
	const good = "mutant one udp\nfile a.go\n- x\n+ y\ntest ./a TestA\n"
	if all, err := parseList("l", "# a comment\n\n"+good+"\n"+strings.Replace(good, "one", "two", 1)); err != nil || len(all) != 2 {
		t.Fatalf("%v %v", all, err)
	}
	for name, change := range map[string][2]string{
		"unknown item":     {" udp", " weather"},
		"no file":          {"file a.go\n", ""},
		"no old text":      {"- x\n", ""},
		"nothing changes":  {"+ y", "+ x"},
		"no test":          {" TestA", ""},
		"an unknown line":  {"+ y", "y"},
		"a mutant unnamed": {"mutant one udp", "mutant udp"},
	} {
		if _, err := parseList("l", strings.Replace(good, change[0], change[1], 1)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestOldTextIsFoundOnceWhateverItsSpace(t *testing.T) {
	m := mutant{name: "m", old: "if (a &&\n    b)", new: "if (a)"}
	if got, err := m.apply("x;\n\tif (a && b)\n\t\treturn;"); err != nil || got != "x;\n\tif (a)\n\t\treturn;" {
		t.Errorf("%q %v", got, err)
	}
	for _, text := range []string{"if (a || b)", "if (a && b) if (a && b)"} {
		if got, err := m.apply(text); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// module is a tree with a function, a test that pins one side of it, and others of no use.
var module = map[string]string{
	"go.mod": "module example.org/sign\n\ngo 1.26\n",
	"sign/sign.go": `package sign

func Sign(n int) int {
	if n < 0 {
		return -1
	}
	if n > 0 {
		return 1
	}
	return 0
}
`,
	"sign/sign_test.go": `package sign

import (
	"os"
	"testing"
)

func TestNegative(t *testing.T) {
	if os.Getenv("REQUIRE_ROOT") != "1" {
		t.Fatal("not as a test of everything")
	}
	if Sign(-3) != -1 {
		t.Fail()
	}
}

func TestSkipped(t *testing.T) { t.Skip() }

func TestFails(t *testing.T) { t.Fatal("why it fails") }

func TestNegativeToo(t *testing.T) { t.Log("of no interest") }
`,
}

const moduleList = `
mutant killed parse
file sign/sign.go
- return -1
+ return 1
test ./sign TestNegative

mutant crash parse
file sign/sign.go
- return -1
+ os := []int{}; return os[n+3]
test ./sign TestNegative

mutant survivor parse
file sign/sign.go
- return 0
+ return 7
test ./sign TestNegative

mutant unbuilt parse
file sign/sign.go
- return 0
+ return
test ./sign TestNegative

mutant absent parse
file sign/sign.go
- return 5
+ return 7
test ./sign TestNegative

mutant skipped parse
file sign/sign.go
- return 0
+ return 8
test ./sign TestSkipped

mutant failing parse
file sign/sign.go
- return 0
+ return 9
test ./sign TestFails

mutant another parse
file sign/sign.go
- return 1
+ return 2
test ./sign TestNegativeToo TestNegative

mutant untested parse
file sign/sign.go
- return 0
+ return 9
test ./sign TestNowhere
`

func TestEachEndOfAMutant(t *testing.T) {
	root := t.TempDir()
	for name, text := range module {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mutants, err := parseList("list.txt", moduleList)
	if err != nil {
		t.Fatal(err)
	}
	left := t.TempDir()
	t.Setenv("TMPDIR", left)
	var out bytes.Buffer
	if err := tryAll(t.Context(), runner{root: root, jobs: 2}, mutants, &out); err == nil || err.Error() != "7 of 9 mutants were not killed" {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"killed":   `(?m)^killed .* killed +parse +TestNegative$`,
		"crash":    `(?m)^killed .* crash +parse`,
		"survivor": `(?m)^survived .* survivor +parse *\n.*sign\.go.*\n +- return 0\n +\+ return 7\n.*TestNegative$`,
		"unbuilt":  `(?m)^error .* unbuilt .*\n +does not build:`,
		"absent":   `(?m)^error .* absent .*\n.*old text is 0 times`,
		"skipped":  `(?m)^error .* skipped .*\n +TestSkipped is skipped$`,
		"failing":  `(?m)^error .* failing .*\n +TestFails fails without the mutant:\n +=== RUN   TestFails\n.*why it fails`,
		"untested": `(?m)^error .* untested .*\n +TestNowhere does not exist`,
		"summary":  `(?m)^2 killed, 2 survived, 5 errors in `,
	} {
		if !regexp.MustCompile(want).Match(out.Bytes()) {
			t.Errorf("%s: nothing matches %s", name, want)
		}
	}
	if bytes.Contains(out.Bytes(), []byte("of no interest")) {
		t.Error("what passes is shown, too")
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if text, err := os.ReadFile(filepath.Join(root, "sign/sign.go")); err != nil || string(text) != module["sign/sign.go"] {
		t.Errorf("the checkout was changed: %s %v", text, err)
	}
	if rest, err := os.ReadDir(left); err != nil || len(rest) != 0 {
		t.Errorf("left behind: %v %v", rest, err)
	}
}

func TestAChosenMutantMustExist(t *testing.T) {
	if err := tryAll(t.Context(), runner{root: top, jobs: 1}, nil, &bytes.Buffer{}); err == nil {
		t.Error("nothing was tried, and all is well")
	}
}
