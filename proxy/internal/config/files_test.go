package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// write puts files into a directory.
func write(t *testing.T, dir string, files directory) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryListsServicesFilesInOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, directory{
		"b.yaml": svc("b 10.96.0.2"), "a.yml": svc("a 10.96.0.1"), "10.yaml": svc(),
		".hidden.yaml": broken, "a.yaml~": broken, "#a.yaml#": broken, "a.yaml.swp": broken, "README": broken, "c.json": broken,
	})
	files, err := ReadDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(running(files), "; "); got != "10.yaml: ; a.yml: a 10.96.0.1; b.yaml: b 10.96.0.2" {
		t.Error(got)
	}
	if _, err := ReadDir(filepath.Join(dir, "none"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestWhatIsNoRegularFileIsAFinding(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, directory{"target": svc("a 10.96.0.1")})
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(path("dir.yaml"), 0o700),
		syscall.Mkfifo(path("fifo.yaml"), 0o600), // must not be waited for
		os.Symlink("target", path("link.yaml")),
		os.Symlink("nowhere", path("loose.yaml")),
		os.Symlink("/dev/zero", path("zero.yaml")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	files, err := ReadDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted, findings := Merge(nil, files, Surroundings{})
	expect(t, findings,
		path("dir.yaml")+":1:1: file: file cannot be read: open: a directory is no regular file",
		path("fifo.yaml")+":1:1: file: file cannot be read: open: a named pipe is no regular file",
		path("loose.yaml")+":1:1: file: file cannot be read: open: no such file or directory",
		path("zero.yaml")+":1:1: file: file cannot be read: open: a device is no regular file")
	if got := strings.Join(running(accepted), "; "); got != "link.yaml: a 10.96.0.1" {
		t.Error(got)
	}
}

// A change must cost what the changed file costs, however many others there are.
func TestUnchangedFilesAreNotParsedAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, directory{"a.yaml": svc("a 10.96.0.1"), "b.yaml": svc("b 10.96.0.2"), "c.yaml": broken})
	first, err := ReadDir(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, directory{"b.yaml": svc("b 10.96.0.3")})
	second, err := ReadDir(dir, first)
	if err != nil {
		t.Fatal(err)
	}
	if &first[0].Services[0] != &second[0].Services[0] || &first[2].Findings[0] != &second[2].Findings[0] {
		t.Error("an unchanged file was parsed again")
	}
	if got := strings.Join(running(second), "; "); got != "a.yaml: a 10.96.0.1; b.yaml: b 10.96.0.3; c.yaml: " {
		t.Error(got)
	}
}

func TestValidateTellsFilesApartAndMergesThem(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, dir, directory{
		"z.yaml":        svc("web 10.96.0.1"),
		"a.yaml":        svc("web 10.89.0.1"),
		"settings.yaml": "nodes: [{name: b, address: 192.0.2.12, subnets: [10.89.0.0/16]}]\n",
		"typo.yaml":     "servics: []\n",
		"tclb.yaml":     "lisen: x\n",
		"both.yaml":     "listen: \"\"\nservices: []\n",
	})
	findings, err := Validate([]string{path("z.yaml"), path("a.yaml"), path("z.yaml")}, Here{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, findings, path("z.yaml")+`:2:10: services[0].name: service name "web" is taken by `+path("a.yaml")+": give this one another name")

	// With a tclb.yaml its pool and its peers' subnets count as well.
	findings, err = Validate([]string{path("a.yaml"), path("settings.yaml")}, Here{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, findings, path("a.yaml")+":2:43: services[0].vips[0]: VIP 10.89.0.1 is inside the container subnet 10.89.0.0/16: choose one outside")

	findings, err = Validate([]string{path("typo.yaml"), path("tclb.yaml"), path("both.yaml"), path("none.yaml")}, Here{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none.yaml") {
		t.Error(err)
	}
	expect(t, findings,
		path("typo.yaml")+`:1:1: servics: unknown key "servics": did you mean "services"?`,
		path("tclb.yaml")+`:1:1: lisen: unknown key "lisen": did you mean "listen"?`,
		path("both.yaml")+`:1:1: listen: unknown key "listen": want services`)
}

// Without a tclb.yaml nobody knows the pool, so a service without vips is none's mistake.
func TestValidateAssumesAPool(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, directory{"a.yaml": "services: [{name: a, ports: [{port: 80}], backends: [{address: \"2001:db8::1\"}]}]\n"})
	findings, err := Validate([]string{filepath.Join(dir, "a.yaml")}, Here{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, findings, "")
}
