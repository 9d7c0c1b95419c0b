package source

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

var quiet = slog.New(slog.DiscardHandler)

// patience is how long an event may take on a busy machine before a test fails.
const patience = 10 * time.Second

func text(name, vip string) string {
	return fmt.Sprintf("services:\n- name: %s\n  vips: [%s]\n  ports: [{protocol: tcp, port: 80}]\n", name, vip)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// follower is a services source that runs, and what it published.
type follower struct {
	*Services
	t         *testing.T
	dir       string
	published chan string // names of the services, in order, joined by spaces
}

func follow(t *testing.T, dir, stateDir string) *follower {
	t.Helper()
	f := &follower{t: t, dir: dir, published: make(chan string, 1000)}
	f.Services = NewServices(dir, stateDir, func(defs []state.Definition) {
		var names []string
		for _, d := range defs {
			names = append(names, d.Spec.Name)
		}
		slices.Sort(names)
		f.published <- strings.Join(names, " ")
	}, quiet)
	f.Start(config.Surroundings{Pool: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		f.Save()
	})
	return f
}

// want waits until the services are these.
func (f *follower) want(names string) {
	f.t.Helper()
	last := "nothing"
	deadline := time.After(patience)
	for {
		select {
		case last = <-f.published:
			if last == names {
				return
			}
		case <-deadline:
			f.t.Fatalf("services %q, want %q", last, names)
		}
	}
}

func TestFilesCountWhenTheyAreComplete(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir, t.TempDir())
	f.want("")

	write(t, filepath.Join(dir, "written.yaml"), text("written", "10.97.0.1"))
	f.want("written")

	aside := filepath.Join(dir, ".aside")
	write(t, aside, text("renamed", "10.97.0.2"))
	if err := os.Rename(aside, filepath.Join(dir, "renamed.yaml")); err != nil {
		t.Fatal(err)
	}
	f.want("renamed written")

	elsewhere := filepath.Join(t.TempDir(), "linked")
	write(t, elsewhere, text("linked", "10.97.0.3"))
	if err := os.Symlink(elsewhere, filepath.Join(dir, "linked.yaml")); err != nil {
		t.Fatal(err)
	}
	f.want("linked renamed written")

	if err := os.Remove(filepath.Join(dir, "written.yaml")); err != nil {
		t.Fatal(err)
	}
	f.want("linked renamed")
}

func TestHalfFilesAreNeverRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	write(t, path, text("before", "10.97.0.1"))
	f := follow(t, dir, t.TempDir())
	f.want("before")

	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Another file makes the source read the whole directory while this one is empty.
	write(t, filepath.Join(dir, "other.yaml"), text("other", "10.97.0.2"))
	f.want("before other")
	if _, err := file.WriteString(text("after", "10.97.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	f.want("after other")
}

func TestBrokenFileKeepsWhatRanAcrossARestart(t *testing.T) {
	dir, stateDir := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	write(t, path, text("good", "10.97.0.1"))
	f := follow(t, dir, stateDir)
	f.want("good")
	f.Save()
	write(t, path, "services: [{name")
	for range 100 {
		if len(f.Findings()) > 0 {
			break
		}
		f.Reread()
	}
	if len(f.Findings()) == 0 {
		t.Fatal("the mistake is not shown")
	}
	f.Save()

	again := follow(t, dir, stateDir)
	again.want("good")
	if len(again.Findings()) == 0 {
		t.Error("after the restart the mistake is not shown")
	}
}

func TestAssignedVIPSurvivesARestart(t *testing.T) {
	dir, stateDir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "web.yaml"), "services:\n- name: web\n  ports: [{protocol: tcp, port: 80}]\n")
	vip := func() netip.Addr {
		var got netip.Addr
		s := NewServices(dir, stateDir, func(defs []state.Definition) { got = defs[0].Spec.VIPs[0] }, quiet)
		s.Start(config.Surroundings{Pool: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
		s.Reread()
		s.Save()
		return got
	}
	first := vip()
	// A service that claims it by address now does not get it: what ran keeps it.
	write(t, filepath.Join(dir, "a-thief.yaml"), text("thief", first.String()))
	var names []string
	s := NewServices(dir, stateDir, func(defs []state.Definition) {
		names = nil
		for _, d := range defs {
			names = append(names, d.Spec.Name+" "+d.Spec.VIPs[0].String())
		}
	}, quiet)
	s.Start(config.Surroundings{Pool: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	s.Reread()
	if want := []string{"web " + first.String()}; !slices.Equal(names, want) {
		t.Errorf("services %q, want %q", names, want)
	}
}

func TestMissingDirectoryIsWaitedForAndAReplacedOneFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "services.d")
	f := follow(t, dir, t.TempDir())
	f.want("")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), text("a", "10.97.0.1"))
	f.want("a")

	next := dir + ".next"
	if err := os.Mkdir(next, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(next, "b.yaml"), text("b", "10.97.0.2"))
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, dir); err != nil {
		t.Fatal(err)
	}
	f.want("b")
}

func TestEndpointsFollowTheRegistry(t *testing.T) {
	dir, err := registry.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan []registry.Endpoint, 1000)
	alive := func(e registry.Endpoint) bool { return e.HostIfindex != 13 }
	s := NewEndpoints(dir, alive, func(e []registry.Endpoint) { published <- e }, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	want := func(n int) {
		t.Helper()
		deadline := time.After(patience)
		for {
			select {
			case got := <-published:
				if len(got) == n {
					return
				}
			case <-deadline:
				t.Fatalf("never saw %d endpoints", n)
			}
		}
	}
	want(0)
	put := func(container string, ifindex uint32) string {
		e := registry.Endpoint{ID: registry.EndpointID(container, "eth0"), ContainerID: container, Ifname: "eth0", HostIfindex: ifindex}
		if err := dir.Put(e); err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	first := put("c1", 7)
	want(1)
	put("dead", 13)
	put("c2", 8)
	want(2)
	if err := dir.Delete(first); err != nil {
		t.Fatal(err)
	}
	want(1)
}
