package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func TestEverySpecVersionAndVerb(t *testing.T) {
	for version, want := range map[string]struct{ add, check, gc uint }{
		"0.1.0": {1, 1, 1}, "0.2.0": {1, 1, 1}, // before chaining
		"0.3.0": {0, 1, 1}, "0.3.1": {0, 1, 1},
		"0.4.0": {0, 0, 1}, "1.0.0": {0, 0, 1},
		"1.1.0": {0, 0, 0},
		"9.9.9": {1, 1, 1},
	} {
		w := newWorld(t)
		for _, step := range []struct {
			verb string
			code uint
		}{{"ADD", want.add}, {"CHECK", want.check}, {"STATUS", want.gc}, {"GC", want.gc}, {"DEL", want.add}, {"DEL", want.add}} {
			_, err := w.call(w.request(step.verb, version, nil))
			if got := code(err); got != step.code {
				t.Errorf("%s %s: %v, want code %d", version, step.verb, err, step.code)
			}
		}
		w.expectEmpty()
	}
}

func code(err *types.Error) uint {
	if err == nil {
		return 0
	}
	return err.Code
}

func TestAddRegistersWhatItLearned(t *testing.T) {
	w := newWorld(t)
	w.veths["eth0"] = aVeth(7, "192.0.2.7", "2001:db8::7")
	w.mustCall(w.request("ADD", "1.0.0", map[string]any{"services": []string{"web"}}))
	got := w.registered()
	if len(got) != 1 {
		t.Fatalf("registered %+v", got)
	}
	e := got[0]
	for _, c := range []struct{ what, got, want string }{
		{"id", e.ID, registry.EndpointID("c1", "eth0")},
		{"network", e.Network, "net"},
		{"netns", e.Netns, "/no/such/netns"},
		{"sandbox", e.Sandbox, "/x"},
		{"host interface", e.HostInterface, "veth0"},
		{"boot", e.BootID, "boot-1"},
		{"mac", e.MAC, "02:00:00:00:00:01"},
		{"up mac", e.UpMAC, "02:00:00:00:00:02"},
		{"master", e.Master, "br0"},
		{"attach", e.Attach, "tcx"},
		{"services", strings.Join(e.Services, ","), "web"},
		{"source", e.Source, registry.SourceConflist},
	} {
		if c.got != c.want {
			t.Errorf("%s = %q, want %q", c.what, c.got, c.want)
		}
	}
	if e.HostIfindex != 7 || e.UpIfindex != 3 || e.NetnsCookie != 9 || !e.DefaultRoute {
		t.Errorf("registered %+v", e)
	}
	// The address in the result and on the link counts once.
	want := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	if !slices.Equal(e.Addresses, want) {
		t.Errorf("addresses %v, want %v", e.Addresses, want)
	}
	for _, a := range want {
		if _, ok := w.endpoints[datapath.EndpointKey{Address: a, Ifindex: 7}]; !ok {
			t.Errorf("%s is not in the endpoint map", a)
		}
	}
	if len(w.pins) != 2 {
		t.Errorf("pins %v", w.pins)
	}
}

// addFailures are the ways in which an ADD can go wrong, one a step.
var addFailures = map[string]struct {
	code   uint
	inject func(w *fakeWorld)
}{
	"no veth":          {codeInterface, func(w *fakeWorld) { w.netErr = failure(codeInterface, nil, "macvlan") }},
	"datapath":         {codeDatapath, func(w *fakeWorld) { w.loadErr = errInjected }},
	"other layout":     {types.ErrTryAgainLater, func(w *fakeWorld) { w.loadErr = &datapath.LayoutError{Found: 9, Want: 1} }},
	"second address":   {codeMaps, func(w *fakeWorld) { w.failPut, w.putErr = netip.MustParseAddr("2001:db8::7"), errInjected }},
	"map full":         {types.ErrTryAgainLater, func(w *fakeWorld) { w.failPut, w.putErr = netip.MustParseAddr("2001:db8::7"), datapath.ErrFull }},
	"ingress":          {codeAttach, func(w *fakeWorld) { w.failAttach, w.attachErr = "-in", errInjected }},
	"egress":           {codeAttach, func(w *fakeWorld) { w.failAttach, w.attachErr = "-out", errInjected }},
	"result":           {types.ErrIOFailure, func(w *fakeWorld) { w.p.out = brokenPipe{} }},
	"boot id":          {types.ErrIOFailure, func(w *fakeWorld) { w.p.bootID = func() (string, error) { return "", errInjected } }},
	"run directory":    {types.ErrIOFailure, func(w *fakeWorld) { w.block(w.runDir) }},
	"no directory":     {types.ErrIOFailure, func(w *fakeWorld) { w.block(filepath.Join(w.runDir, "endpoints")) }},
	"file":             {types.ErrIOFailure, func(w *fakeWorld) { w.must(os.MkdirAll(w.endpointFile(), 0o700)) }},
	"bad service name": {types.ErrInvalidNetworkConfig, nil},
}

func TestFailedAddLeavesNothing(t *testing.T) {
	for name, fail := range addFailures {
		for _, again := range []bool{false, true} {
			w := newWorld(t)
			w.veths["eth0"] = aVeth(7, "192.0.2.7", "2001:db8::7")
			if again && !strings.Contains(name, "directory") && name != "file" {
				w.mustCall(w.request("ADD", "1.0.0", nil))
				w.veths["eth0"] = aVeth(8, "192.0.2.7", "2001:db8::7")
			}
			r := w.request("ADD", "1.0.0", nil)
			if fail.inject == nil {
				r.Env["CNI_ARGS"] = "TCLB_SERVICES=Web"
			} else {
				fail.inject(w)
			}
			out, err := w.call(r)
			if code(err) != fail.code {
				t.Errorf("%s: %v, want code %d", name, err, fail.code)
			}
			if out != "" {
				t.Errorf("%s: a failed ADD printed %q", name, out)
			}
			for k := range w.endpoints {
				if k.Ifindex == 8 || !again {
					t.Errorf("%s: %v left in the endpoint map", name, k)
				}
			}
			for _, l := range w.pins {
				if l.Ifindex == 8 || !again {
					t.Errorf("%s: %+v left", name, l)
				}
			}
			if !again {
				w.expectEmpty()
			}
		}
	}
}

func (w *fakeWorld) endpointFile() string {
	return filepath.Join(w.runDir, "endpoints", registry.EndpointID("c1", "eth0")+".json")
}

// block puts a file where a directory is wanted: that stops root, too.
func (w *fakeWorld) block(path string) {
	w.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = os.Remove(path) })
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errInjected }

func TestSecondAddReplacesTheFirst(t *testing.T) {
	w := newWorld(t)
	w.veths["eth0"] = aVeth(7, "192.0.2.7", "2001:db8::7")
	w.mustCall(w.request("ADD", "1.0.0", nil))

	// The same once more, as Nomad retries: nothing is taken away in between.
	w.mustCall(w.request("ADD", "1.0.0", nil))
	if len(w.retired) != 0 || len(w.endpoints) != 2 || len(w.registered()) != 1 {
		t.Errorf("repeated ADD: retired %v, endpoints %v", w.retired, w.endpoints)
	}

	// The same veth with an address less.
	w.veths["eth0"] = aVeth(7, "192.0.2.7")
	w.mustCall(w.request("ADD", "1.0.0", nil))
	gone := datapath.EndpointKey{Address: netip.MustParseAddr("2001:db8::7"), Ifindex: 7}
	if _, left := w.endpoints[gone]; left || !slices.Equal(w.retired, []datapath.EndpointKey{gone}) {
		t.Errorf("lost address: retired %v, endpoints %v", w.retired, w.endpoints)
	}

	// A new veth, as after a restart without DEL.
	w.retired = nil
	w.veths["eth0"] = aVeth(8, "192.0.2.7")
	w.mustCall(w.request("ADD", "1.0.0", nil))
	old := datapath.EndpointKey{Address: netip.MustParseAddr("192.0.2.7"), Ifindex: 7}
	if _, left := w.endpoints[old]; left || !slices.Equal(w.retired, []datapath.EndpointKey{old}) || len(w.endpoints) != 1 {
		t.Errorf("new veth: retired %v, endpoints %v", w.retired, w.endpoints)
	}
	if list := w.registered(); len(list) != 1 || list[0].HostIfindex != 8 {
		t.Errorf("new veth: registered %+v", list)
	}
}

func TestDelAlwaysSucceeds(t *testing.T) {
	for name, prepare := range map[string]func(w *fakeWorld, r *request){
		"plain":    func(*fakeWorld, *request) {},
		"no netns": func(_ *fakeWorld, r *request) { r.Env["CNI_NETNS"] = "" },
		"no prevResult": func(w *fakeWorld, r *request) {
			r.Stdin = w.request("DEL", "1.0.0", map[string]any{"prevResult": nil}).Stdin
		},
		"corrupt file": func(w *fakeWorld, _ *request) {
			if err := os.WriteFile(w.endpointFile(), []byte("{"), 0o600); err != nil {
				w.Fatal(err)
			}
		},
		"lost file": func(w *fakeWorld, _ *request) {
			if err := os.RemoveAll(w.runDir); err != nil {
				w.Fatal(err)
			}
		},
		"conflist broken since": func(w *fakeWorld, r *request) {
			r.Stdin = w.request("DEL", "1.0.0", map[string]any{"services": 7, "joinByName": "maybe", "prevResult": "x"}).Stdin
		},
		"bad CNI_ARGS": func(_ *fakeWorld, r *request) { r.Env["CNI_ARGS"] = "TCLB_WEIGHT=heavy" },
	} {
		w := newWorld(t)
		w.mustCall(w.request("ADD", "1.0.0", nil))
		r := w.request("DEL", "1.0.0", nil)
		prepare(w, &r)
		for range 2 {
			if out := w.mustCall(r); out != "" {
				t.Errorf("%s: DEL printed %q", name, out)
			}
		}
		w.expectEmpty()
		if len(w.retired) != 1 {
			t.Errorf("%s: retired %v, want the container's address once", name, w.retired)
		}
	}
}

func TestDelWithoutAnythingThere(t *testing.T) {
	w := newWorld(t)
	w.mustCall(w.request("DEL", "1.0.0", nil))
	w.openErr = datapath.ErrNotLoaded
	w.mustCall(w.request("DEL", "1.0.0", map[string]any{"bpffs": 7, "runDir": "relative"}))
	if _, err := os.Stat(w.runDir); !os.IsNotExist(err) {
		t.Errorf("DEL made the run directory: %v", err)
	}
	for _, err := range []error{errInjected, &datapath.LayoutError{Found: 9, Want: 1}} {
		w.mustCall(w.request("ADD", "1.0.0", nil))
		w.openErr, w.detachErr = err, errInjected
		w.mustCall(w.request("DEL", "1.0.0", nil))
		if !strings.Contains(w.log.String(), "level=ERROR") {
			t.Error("nothing was logged")
		}
		if list := w.registered(); len(list) != 0 {
			t.Errorf("still registered: %+v", list)
		}
		w.openErr, w.detachErr = nil, nil
	}
}

// After a reboot interface numbers and addresses are given out again, in the same order: what a
// file of another boot says must not take down a container of this one.
func TestFilesOfAnotherBootTouchNothing(t *testing.T) {
	w := newWorld(t)
	w.mustCall(w.request("ADD", "1.0.0", nil))
	clear(w.pins)
	w.p.bootID = func() (string, error) { return "boot-2", nil }
	w.mustCall(w.request("DEL", "1.0.0", nil))
	if len(w.retired) != 0 || len(w.endpoints) != 1 {
		t.Errorf("retired %v, endpoints %v", w.retired, w.endpoints)
	}
	if len(w.registered()) != 0 {
		t.Error("the file is still there")
	}
}

func TestIngressOnlyAttachmentIsRegisteredAndChecked(t *testing.T) {
	w := newWorld(t)
	w.failAttach, w.attachErr = "-out", attach.ErrNoEgress
	w.mustCall(w.request("ADD", "1.0.0", nil))
	if e := w.registered()[0]; e.Attach != attach.KindIngress {
		t.Errorf("attach %q, want ingress", e.Attach)
	}
	if !strings.Contains(w.log.String(), "no egress hook") {
		t.Errorf("no warning: %s", w.log.String())
	}
	w.mustCall(w.request("CHECK", "1.0.0", nil))
}

func TestCheckTellsWhatIsGone(t *testing.T) {
	id := registry.EndpointID("c1", "eth0")
	for name, c := range map[string]struct {
		want string
		harm func(w *fakeWorld)
	}{
		"other veth":    {"now joined to", func(w *fakeWorld) { w.veths["eth0"] = aVeth(8, "192.0.2.7") }},
		"lost address":  {"lost its address", func(w *fakeWorld) { w.veths["eth0"] = aVeth(7) }},
		"lost program":  {"not attached", func(w *fakeWorld) { delete(w.pins, inPin(w.bpffs, id)) }},
		"lost egress":   {"not attached", func(w *fakeWorld) { delete(w.pins, outPin(w.bpffs, id)) }},
		"dead program":  {"does not run", func(w *fakeWorld) { w.pins[inPin(w.bpffs, id)] = attach.Link{} }},
		"lost record":   {"not in the endpoint map", func(w *fakeWorld) { clear(w.endpoints) }},
		"lost maps":     {"no maps are pinned", func(w *fakeWorld) { w.openErr = datapath.ErrNotLoaded }},
		"lost file":     {"not attached", func(w *fakeWorld) { w.must(os.RemoveAll(w.runDir)) }},
		"gone netns":    {"namespace", func(w *fakeWorld) { w.netErr = failure(types.ErrInvalidNetNS, nil, "namespace") }},
		"not loadable":  {"cannot be used", func(w *fakeWorld) { w.openErr = errInjected }},
		"other address": {"", func(w *fakeWorld) { w.veths["eth0"] = aVeth(7, "192.0.2.7", "2001:db8::99") }},
		"nothing":       {"", func(*fakeWorld) {}},
	} {
		w := newWorld(t)
		w.mustCall(w.request("ADD", "1.0.0", nil))
		c.harm(w)
		_, err := w.call(w.request("CHECK", "1.0.0", nil))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func (w *fakeWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}
