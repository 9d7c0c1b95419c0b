package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// files are the paths below dir, relative to it, directories apart and what the kernel puts into
// every bpffs.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return out
}

// attachments describes what the node holds of containers: link pins, map entries, files.
func (n *node) attachments(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, f := range files(t, datapath.LinkDir(n.bpffs)) {
		if f != "host" {
			out = append(out, "pin "+f)
		}
	}
	for _, dir := range []string{"endpoints", "locks"} {
		for _, f := range files(t, filepath.Join(n.runDir, dir)) {
			out = append(out, "file "+dir+"/"+f)
		}
	}
	for _, l := range n.links() {
		if strings.HasPrefix(l, "veth") {
			out = append(out, "link "+l)
		}
	}
	if _, err := os.Stat(datapath.Dir(n.bpffs)); err != nil {
		return out // nothing was ever loaded
	}
	d, err := datapath.Open(n.bpffs)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	endpoints, err := d.Endpoints()
	if err != nil {
		t.Fatal(err)
	}
	for k := range endpoints {
		out = append(out, "map entry of "+k.Address.String())
	}
	return out
}

// expectNoAttachment checks that nothing is left of any container.
func (n *node) expectNoAttachment(t *testing.T) {
	t.Helper()
	for _, left := range n.attachments(t) {
		t.Errorf("left over: %s", left)
	}
}
