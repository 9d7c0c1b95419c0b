package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

var errInjected = errors.New("injected")

// fakeWorld is a node in memory: maps, pins and interfaces. The run directory is a real one.
type fakeWorld struct {
	*testing.T
	p      *plugin
	bpffs  string
	runDir string
	out    bytes.Buffer
	log    bytes.Buffer

	loadErr, openErr error
	veths            map[string]veth // by interface name; others get one made up
	netErr           error

	endpoints map[datapath.EndpointKey]datapath.Endpoint
	retired   []datapath.EndpointKey
	failPut   netip.Addr // PutEndpoint of this address fails
	putErr    error

	pins       map[string]attach.Link
	failAttach string // suffix of the pin whose Attach fails
	attachErr  error
	detachErr  error
}

func newWorld(t *testing.T) *fakeWorld {
	t.Helper()
	w := &fakeWorld{
		T: t, bpffs: filepath.Join(t.TempDir(), "bpf"), runDir: filepath.Join(t.TempDir(), "run"),
		veths: map[string]veth{}, endpoints: map[datapath.EndpointKey]datapath.Endpoint{}, pins: map[string]attach.Link{},
	}
	w.p = &plugin{
		load:   func(datapath.Options) (maps, error) { return fakeMaps{w}, w.loadErr },
		open:   func(string) (maps, error) { return fakeMaps{w}, w.openErr },
		links:  fakeLinks{w},
		net:    fakeNetwork{w},
		bootID: func() (string, error) { return "boot-1", nil },
		now:    func() time.Time { return time.Unix(1700000000, 0) },
		out:    &w.out,
		log:    slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	return w
}

func aVeth(ifindex uint32, addrs ...string) veth {
	v := veth{
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, UpMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, NetnsCookie: 9,
		HostName: "veth0", HostIfindex: ifindex, Master: "br0", UpIfindex: 3, DefaultRoute: true,
	}
	for _, a := range addrs {
		v.Addresses = append(v.Addresses, netip.MustParseAddr(a))
	}
	return v
}

// expectEmpty checks that nothing of any attachment is left.
func (w *fakeWorld) expectEmpty() {
	w.Helper()
	if len(w.endpoints) != 0 {
		w.Errorf("endpoints left in the map: %v", w.endpoints)
	}
	if len(w.pins) != 0 {
		w.Errorf("pins left: %v", w.pins)
	}
	for _, dir := range []string{"endpoints", "locks"} {
		left, err := os.ReadDir(filepath.Join(w.runDir, dir))
		if err != nil && !os.IsNotExist(err) && !errors.Is(err, syscall.ENOTDIR) {
			w.Error(err)
		}
		for _, f := range left {
			w.Errorf("left in the run directory: %s/%s", dir, f.Name())
		}
	}
}

// registered returns the endpoint files.
func (w *fakeWorld) registered() []registry.Endpoint {
	w.Helper()
	reg, err := registry.Open(w.runDir)
	if err != nil {
		w.Fatal(err)
	}
	list, errs := reg.List()
	if len(errs) != 0 {
		w.Fatal(errs)
	}
	return list
}

// request is a call of the plugin, as a runtime makes it.
type request struct {
	Env   map[string]string
	Stdin json.RawMessage
}

// call runs the plugin through skel and returns its standard output.
func (w *fakeWorld) call(r request) (string, *types.Error) {
	w.Helper()
	for _, k := range []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"} {
		w.Setenv(k, r.Env[k])
	}
	stdin, err := os.Create(filepath.Join(w.TempDir(), "stdin"))
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = stdin.Close() }()
	if _, err := stdin.Write(r.Stdin); err != nil {
		w.Fatal(err)
	}
	if _, err := stdin.Seek(0, io.SeekStart); err != nil {
		w.Fatal(err)
	}
	old := os.Stdin
	os.Stdin = stdin
	defer func() { os.Stdin = old }()
	w.out.Reset()
	callErr := skel.PluginMainFuncsWithError(w.p.verbs(), specVersions, "")
	return w.out.String(), callErr
}

// request returns a call of verb for container c1's eth0, with keys added to the configuration;
// a nil value takes a key away.
func (w *fakeWorld) request(verb, version string, keys map[string]any) request {
	w.Helper()
	conf := map[string]any{
		"cniVersion": version, "name": "net", "type": "tclb-cni", "bpffs": w.bpffs, "runDir": w.runDir,
		"prevResult": json.RawMessage(resultFor(version)),
	}
	if verb == "GC" {
		conf["cni.dev/valid-attachments"] = []any{}
	}
	for k, v := range keys {
		conf[k] = v
		if v == nil {
			delete(conf, k)
		}
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		w.Fatal(err)
	}
	return request{Stdin: stdin, Env: map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/no/such/netns", "CNI_PATH": "/opt/cni/bin",
	}}
}

func resultFor(version string) string {
	ipVersion := ""
	if strings.HasPrefix(version, "0.") {
		ipVersion = `"version":"4",`
	}
	return `{"cniVersion":"` + version + `","interfaces":[{"name":"br0"},{"name":"veth0"},{"name":"eth0","sandbox":"/x"}],` +
		`"ips":[{` + ipVersion + `"address":"192.0.2.7/24","gateway":"192.0.2.1","interface":2}],"dns":{}}`
}

func (w *fakeWorld) mustCall(r request) string {
	w.Helper()
	out, err := w.call(r)
	if err != nil {
		w.Fatalf("%s: %v", r.Env["CNI_COMMAND"], err)
	}
	return out
}

func (w *fakeWorld) expectCode(r request, code uint) *types.Error {
	w.Helper()
	_, err := w.call(r)
	if err == nil || err.Code != code {
		w.Fatalf("%s: %v, want an error of code %d", r.Env["CNI_COMMAND"], err, code)
	}
	return err
}

type fakeMaps struct{ w *fakeWorld }

func (fakeMaps) Close() error                 { return nil }
func (fakeMaps) Program(string) *ebpf.Program { return nil }
func (m fakeMaps) PutEndpoint(k datapath.EndpointKey, e datapath.Endpoint) error {
	if k.Address == m.w.failPut {
		return m.w.putErr
	}
	m.w.endpoints[k] = e
	return nil
}

func (m fakeMaps) DeleteEndpoint(k datapath.EndpointKey) error {
	delete(m.w.endpoints, k)
	return nil
}

func (m fakeMaps) Endpoints() (map[datapath.EndpointKey]datapath.Endpoint, error) {
	return m.w.endpoints, nil
}

func (m fakeMaps) RetireEndpoint(ifindex uint32, addrs []netip.Addr) (int, error) {
	for _, a := range addrs {
		m.w.retired = append(m.w.retired, datapath.EndpointKey{Address: a, Ifindex: ifindex})
	}
	return len(addrs), nil
}

type fakeLinks struct{ w *fakeWorld }

func (l fakeLinks) Attach(_ *ebpf.Program, ifindex int, dir attach.Direction, pin string) (attach.Link, error) {
	if l.w.failAttach != "" && strings.HasSuffix(pin, l.w.failAttach) {
		return attach.Link{}, l.w.attachErr
	}
	kind := attach.KindTCX
	if errors.Is(l.w.attachErr, attach.ErrNoEgress) {
		kind = attach.KindIngress
	}
	l.w.pins[pin] = attach.Link{PinPath: pin, Ifindex: uint32(ifindex), Kind: kind, Direction: dir, Alive: true}
	return l.w.pins[pin], nil
}

func (l fakeLinks) Detach(pin string, _ int) error {
	delete(l.w.pins, pin)
	return l.w.detachErr
}

func (l fakeLinks) Inspect(pin string) (attach.Link, error) {
	if a, ok := l.w.pins[pin]; ok {
		return a, nil
	}
	return attach.Link{}, attach.ErrNotFound
}

type fakeNetwork struct{ w *fakeWorld }

func (n fakeNetwork) Resolve(_, ifname string) (veth, error) {
	if n.w.netErr != nil {
		return veth{}, n.w.netErr
	}
	if v, ok := n.w.veths[ifname]; ok {
		return v, nil
	}
	return aVeth(7, "192.0.2.7"), nil
}
