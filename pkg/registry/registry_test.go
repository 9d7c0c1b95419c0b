package registry

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func endpoint(containerID string) Endpoint {
	weight := 0
	return Endpoint{
		ID: EndpointID(containerID, "eth0"), ContainerID: containerID, Ifname: "eth0", Network: "net",
		Netns: "/run/netns/x", HostInterface: "veth0", HostIfindex: 7, BootID: "b", NetnsCookie: 1 << 60,
		MAC: "02:00:00:00:00:01", UpMAC: "02:00:00:00:00:02", UpIfindex: 3, Master: "br0", DefaultRoute: true,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		Services:  []string{"web"}, Source: SourceArgs, Weight: &weight, Port: 8080, Container: "web-1",
		Attach: "tcx", Created: time.Date(2025, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

// The ID is in file names and pins of running nodes: it must never change.
func TestEndpointIDIsStable(t *testing.T) {
	if got, want := EndpointID("c1", "eth0"), "ec43057c07aaa51f882664a65fed7b18"; got != want {
		t.Errorf("EndpointID = %s, want %s", got, want)
	}
	if EndpointID("c1e", "th0") == EndpointID("c1", "eth0") {
		t.Error("container id and interface run into each other")
	}
}

func TestPutAndGetKeepEveryField(t *testing.T) {
	d, want := open(t), endpoint("c1")
	if err := d.Put(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.Get(want.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	d, e := open(t), endpoint("c1")
	if err := d.Put(e); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		d.Path(): 0o700, d.Endpoints(): 0o700, filepath.Join(d.Endpoints(), e.ID+".json"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: mode %o, want %o", path, got, want)
		}
	}
}

func TestDeleteLeavesNothingAndRepeats(t *testing.T) {
	d, e := open(t), endpoint("c1")
	if err := d.Put(e); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.temp(e.ID), []byte("left by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Delete(e.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Get(e.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Delete: %v, want ErrNotFound", err)
	}
	if left, err := os.ReadDir(d.Endpoints()); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestListSkipsAndReportsWhatItCannotRead(t *testing.T) {
	d, a, b := open(t), endpoint("a"), endpoint("b")
	for _, e := range []Endpoint{a, b} {
		if err := d.Put(e); err != nil {
			t.Fatal(err)
		}
	}
	half, renamed := EndpointID("half", "eth0"), EndpointID("renamed", "eth0")
	content, err := os.ReadFile(d.file(a.ID))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		half + ".json":          string(content[:len(content)/2]),
		renamed + ".json":       string(content), // another endpoint's content
		"." + half + ".tmp":     "{",
		"notes.txt":             "hello",
		"not-an-id.json":        "{}",
		strings.Repeat("g", 32): "{}",
	} {
		if err := os.WriteFile(filepath.Join(d.Endpoints(), name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, errs := d.List()
	if len(got) != 2 || got[0].ID >= got[1].ID {
		t.Errorf("List = %+v, want a and b in order of their IDs", got)
	}
	if len(errs) != 2 {
		t.Fatalf("List reported %v, want the half and the renamed file", errs)
	}
	all := errors.Join(errs...).Error()
	if !strings.Contains(all, half) || !strings.Contains(all, renamed) {
		t.Errorf("errors do not name the files: %s", all)
	}
}

func TestIDsThatAreNoIDsReachNoPath(t *testing.T) {
	d := open(t)
	for _, id := range []string{"", "..", "../../etc/passwd", strings.Repeat("z", 32), strings.Repeat("a", 31)} {
		if _, err := d.Get(id); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%q): %v, want an error about the id", id, err)
		}
		if err := d.Put(Endpoint{ID: id}); err == nil {
			t.Errorf("Put(%q) wrote a file", id)
		}
		if err := d.Delete(id); err == nil {
			t.Errorf("Delete(%q) is no error", id)
		}
		if _, err := d.Lock(id); err == nil {
			t.Errorf("Lock(%q) is no error", id)
		}
	}
}

func TestLockExcludesAndLeavesNoFile(t *testing.T) {
	d, id := open(t), EndpointID("c1", "eth0")
	var (
		wg     sync.WaitGroup
		inside atomic.Int32
		total  atomic.Int32 // counted in two steps: right only if the lock excludes
	)
	for range 20 {
		wg.Go(func() {
			for range 50 {
				unlock, err := d.Lock(id)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d holders at once", n)
				}
				n := total.Load()
				total.Store(n + 1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	wg.Wait()
	if n := total.Load(); n != 1000 {
		t.Errorf("counted %d, want 1000", n)
	}
	if left, err := os.ReadDir(d.locks()); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestSecondProxyIsRefused(t *testing.T) {
	d := open(t)
	unlock, err := d.LockProxy()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.LockProxy(); !errors.Is(err, ErrLocked) {
		t.Errorf("second LockProxy: %v, want ErrLocked", err)
	}
	unlock()
	again, err := d.LockProxy()
	if err != nil {
		t.Fatalf("LockProxy after unlock: %v", err)
	}
	again()
}

func TestReadersNeverSeeHalfAFile(t *testing.T) {
	d, e := open(t), endpoint("c1")
	if err := d.Put(e); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 500 {
			e.Names = []string{strings.Repeat("n", i)}
			if err := d.Put(e); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		if _, errs := d.List(); len(errs) != 0 {
			t.Fatal(errs)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestBootIDIsOneWord(t *testing.T) {
	id, err := BootID()
	if err != nil {
		t.Fatal(err)
	}
	if len(id) != 36 || strings.ContainsAny(id, " \n") {
		t.Errorf("BootID = %q", id)
	}
}
