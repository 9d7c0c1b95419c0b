package registry

import (
	"os"
	"path/filepath"
	"testing"
)

func TestModeIsWhatTheLastProxyLeft(t *testing.T) {
	d := open(t)
	expect := func(want string) {
		t.Helper()
		if got, err := d.Mode(); err != nil || got != want {
			t.Errorf("mode %q, %v, want %q", got, err, want)
		}
	}
	expect("")
	for _, mode := range []string{ModeUserspace, "ebpf"} {
		if err := d.PutMode(mode); err != nil {
			t.Fatal(err)
		}
		expect(mode)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Path(), ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if err := os.Remove(filepath.Join(d.Path(), modeFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Path(), modeFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Mode(); err == nil {
		t.Error("what cannot be read is a mode")
	}
}
