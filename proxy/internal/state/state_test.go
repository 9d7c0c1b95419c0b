package state

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

var quiet = slog.New(slog.DiscardHandler)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// newStore is a store that knows the endpoints given.
func newStore(t *testing.T, endpoints ...registry.Endpoint) *Store {
	t.Helper()
	s := New("node-a", t.TempDir(), lb.Timeouts{}, quiet)
	s.SetEndpoints(endpoints)
	return s
}

func service(name string, vips ...string) Definition {
	d := Definition{File: name + ".yaml", Spec: lb.Service{
		Name: name, Members: true, Ports: []lb.Port{{Protocol: lb.TCP, Port: 80, TargetPort: 8080}},
	}}
	for _, v := range vips {
		d.Spec.VIPs = append(d.Spec.VIPs, addr(v))
	}
	return d
}

func endpoint(id string, created int64, addresses ...string) registry.Endpoint {
	e := registry.Endpoint{
		ID: registry.EndpointID(id, "eth0"), ContainerID: id, Ifname: "eth0", HostIfindex: uint32(created),
		MAC: "02:00:00:00:00:01", Created: time.Unix(created, 0), Network: "net", Container: "name-" + id,
	}
	for _, a := range addresses {
		e.Addresses = append(e.Addresses, addr(a))
	}
	return e
}

// backends lists a service's backends as text.
func backends(s *Store, name string) []string {
	svc := s.Snapshot().Service(name)
	if svc == nil {
		return nil
	}
	var out []string
	for _, b := range svc.Backends {
		out = append(out, fmt.Sprintf("%s weight=%d %s ifindex=%d", b.Key(), b.Weight, b.State, b.Ifindex))
	}
	return out
}

func wantBackends(t *testing.T, s *Store, name string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, backends(s, name)); diff != "" {
		t.Errorf("backends of %s (-want +got):\n%s", name, diff)
	}
}

func TestNothingIsPublishedBeforeEverySource(t *testing.T) {
	s := New("node-a", t.TempDir(), lb.Timeouts{}, quiet)
	s.SetServices([]Definition{service("web", "10.96.0.1")})
	if s.Snapshot() != nil {
		t.Fatal("published without the containers")
	}
	s.SetEndpoints(nil)
	if got := s.Snapshot(); got == nil || got.Revision != 1 || len(got.Services) != 1 {
		t.Errorf("snapshot %+v", got)
	}
}

var seven = 7

// joins are what a service and a container say of each other, and the backends that follow.
var joins = []struct {
	name   string
	change func(*Definition, *registry.Endpoint)
	want   []string
}{
	{"named", func(_ *Definition, e *registry.Endpoint) { e.Services = []string{"web"} }, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"named twice", func(_ *Definition, e *registry.Endpoint) { e.Services = []string{"web", "web"} }, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"weight", func(_ *Definition, e *registry.Endpoint) { e.Services, e.Weight = []string{"web"}, &seven }, []string{"node-a/10.88.0.5 weight=7 active ifindex=3"}},
	{"by name", func(_ *Definition, e *registry.Endpoint) { e.Names = []string{"web"} }, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"by name on an allowed network", func(d *Definition, e *registry.Endpoint) {
		e.Names, d.Spec.Networks = []string{"web"}, []string{"net"}
	}, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"by name on another network", func(d *Definition, e *registry.Endpoint) {
		e.Names, d.Spec.Networks = []string{"web"}, []string{"other"}
	}, nil},
	{"named on another network", func(d *Definition, e *registry.Endpoint) {
		e.Services, d.Spec.Networks = []string{"web"}, []string{"other"}
	}, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"names count only where no service is named", func(_ *Definition, e *registry.Endpoint) {
		e.Services, e.Names = []string{"later"}, []string{"web"}
	}, nil},
	{"service without members", func(d *Definition, e *registry.Endpoint) {
		d.Spec.Members, e.Services = false, []string{"web"}
	}, nil},
	{"nobody", func(*Definition, *registry.Endpoint) {}, nil},
	{"family without VIP", func(_ *Definition, e *registry.Endpoint) {
		e.Services, e.Addresses = []string{"web"}, []netip.Addr{addr("2001:db8::5")}
	}, nil},
	{"one address a family", func(_ *Definition, e *registry.Endpoint) {
		e.Services, e.Addresses = []string{"web"}, []netip.Addr{addr("10.88.0.5"), addr("10.88.0.6")}
	}, []string{"node-a/10.88.0.5 weight=100 active ifindex=3"}},
	{"listed by address too", func(d *Definition, e *registry.Endpoint) {
		e.Services, e.Weight = []string{"web"}, &seven
		d.Spec.Backends = []lb.Backend{{Address: addr("10.88.0.5"), Weight: 50, State: lb.Draining}}
	}, []string{"10.88.0.5 weight=50 draining ifindex=3"}},
	{"listed only", func(d *Definition, _ *registry.Endpoint) {
		d.Spec.Backends = []lb.Backend{{Address: addr("10.88.0.5"), Weight: 50}}
	}, []string{"10.88.0.5 weight=50 active ifindex=3"}},
	{"same address on another node", func(d *Definition, e *registry.Endpoint) {
		e.Services = []string{"web"}
		d.Spec.Backends = []lb.Backend{{Address: addr("10.88.0.5"), Node: "node-b", Weight: 50}}
	}, []string{"node-a/10.88.0.5 weight=100 active ifindex=3", "node-b/10.88.0.5 weight=50 active ifindex=0"}},
	{"weight 0", func(d *Definition, _ *registry.Endpoint) {
		d.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1")}}
	}, []string{"198.51.100.1 weight=0 maintenance ifindex=0"}},
}

func TestWhoJoins(t *testing.T) {
	for _, tt := range joins {
		t.Run(tt.name, func(t *testing.T) {
			d, e := service("web", "10.96.0.1"), endpoint("c1", 3, "10.88.0.5")
			tt.change(&d, &e)
			s := newStore(t, e)
			s.SetServices([]Definition{d})
			wantBackends(t, s, "web", tt.want...)
		})
	}
}

func TestMemberJoinsWhenTheServiceAppears(t *testing.T) {
	e := endpoint("c1", 3, "10.88.0.5", "2001:db8::5")
	e.Services = []string{"later"}
	s := newStore(t, e)
	s.SetServices(nil)
	s.SetServices([]Definition{service("later", "10.96.0.1", "fd00:96::1")})
	wantBackends(t, s, "later", "node-a/10.88.0.5 weight=100 active ifindex=3", "node-a/2001:db8::5 weight=100 active ifindex=3")
	if got := s.Snapshot().Joined[e.ID]; !slices.Equal(got, []string{"later"}) {
		t.Errorf("joined %v", got)
	}
}

// A container that joined in userspace mode has no programs that would take its answers back to the VIP.
func TestContainerWithoutProgramsIsReachedThroughTheStack(t *testing.T) {
	for attach, local := range map[string]bool{"tcx": true, registry.AttachNone: false} {
		e := endpoint("a", 1, "10.88.0.5")
		e.Services, e.Attach, e.HostIfindex = []string{"web"}, attach, 7
		s := newStore(t, e)
		s.SetServices([]Definition{service("web", "10.96.0.1")})
		b := s.Snapshot().Service("web").Backends
		if len(b) != 1 || b[0].Local() != local || b[0].Endpoint != e.ID || !b[0].Serves() {
			t.Errorf("attached by %s: %+v", attach, b)
		}
	}
}

func TestNewestOwnsAnAddress(t *testing.T) {
	before, after := endpoint("old", 3, "10.88.0.5"), endpoint("new", 4, "10.88.0.5")
	before.Services, after.Services = []string{"web"}, []string{"web"}
	for _, order := range [][]registry.Endpoint{{before, after}, {after, before}} {
		s := newStore(t, order...)
		s.SetServices([]Definition{service("web", "10.96.0.1")})
		wantBackends(t, s, "web", "node-a/10.88.0.5 weight=100 active ifindex=4")
	}
}

func TestUnchangedServicesAreShared(t *testing.T) {
	s := newStore(t)
	s.SetServices([]Definition{service("a", "10.96.0.1"), service("b", "10.96.0.2")})
	first := s.Snapshot()
	changed := service("b", "10.96.0.3")
	s.SetServices([]Definition{changed, service("a", "10.96.0.1")})
	second := s.Snapshot()
	if second.Service("a") != first.Service("a") {
		t.Error("service a was copied without need")
	}
	if second.Service("b") == first.Service("b") {
		t.Error("service b did not change")
	}
	s.SetServices([]Definition{changed, service("a", "10.96.0.1")})
	if s.Snapshot() != second {
		t.Error("an equal input made another snapshot")
	}
}

// TestSameSpecLooksAtEveryField fails when a field of lb.Service is forgotten in sameSpec.
func TestSameSpecLooksAtEveryField(t *testing.T) {
	typ := reflect.TypeFor[lb.Service]()
	for i := range typ.NumField() {
		name := typ.Field(i).Name
		if name == "Backends" {
			continue // compared after the merge
		}
		var a, b lb.Service
		setSomething(t, reflect.ValueOf(&b).Elem().Field(i))
		if sameSpec(&a, &b) {
			t.Errorf("a change of %s is not seen", name)
		}
	}
}

// setSomething gives v another value than zero.
func setSomething(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Struct:
		setSomething(t, v.Field(v.NumField()-1))
	default:
		t.Fatalf("no value for %s", v.Type())
	}
}

func TestOverridesWinAndSurviveARestart(t *testing.T) {
	e := endpoint("c1", 3, "10.88.0.5")
	e.Services = []string{"web"}
	d := service("web", "10.96.0.1")
	d.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Weight: 50}}
	dir := t.TempDir()
	start := func() *Store {
		s := New("node-a", dir, lb.Timeouts{}, quiet)
		s.SetServices([]Definition{d})
		s.SetEndpoints([]registry.Endpoint{e})
		return s
	}
	s := start()
	nine := 9
	for _, err := range []error{s.SetDrain("web", "name-c1", true), s.SetWeight("web", "198.51.100.1", &nine)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"node-a/10.88.0.5 weight=100 draining ifindex=3", "198.51.100.1 weight=9 active ifindex=0"}
	wantBackends(t, s, "web", want...)
	s = start()
	wantBackends(t, s, "web", want...)

	if err := errors.Join(s.SetDrain("web", "node-a/10.88.0.5", false), s.SetWeight("web", "198.51.100.1", nil)); err != nil {
		t.Fatal(err)
	}
	wantBackends(t, start(), "web", "node-a/10.88.0.5 weight=100 active ifindex=3", "198.51.100.1 weight=50 active ifindex=0")
}

func TestOverrideEndsWithItsBackend(t *testing.T) {
	e := endpoint("c1", 3, "10.88.0.5")
	e.Services = []string{"web"}
	s := newStore(t, e)
	s.SetServices([]Definition{service("web", "10.96.0.1")})
	if err := s.SetDrain("web", "10.88.0.5", true); err != nil {
		t.Fatal(err)
	}
	other := endpoint("c2", 4, "10.88.0.5") // the address is given to another container at once
	other.Services = []string{"web"}
	s.SetEndpoints([]registry.Endpoint{other})
	wantBackends(t, s, "web", "node-a/10.88.0.5 weight=100 active ifindex=4")
	s.SetEndpoints([]registry.Endpoint{e})
	wantBackends(t, s, "web", "node-a/10.88.0.5 weight=100 active ifindex=3")
}

func TestDrainOfAListedAddressOutlivesItsContainers(t *testing.T) {
	d := service("web", "10.96.0.1")
	d.Spec.Backends = []lb.Backend{{Address: addr("10.88.0.5"), Weight: 100}}
	s := newStore(t, endpoint("c1", 3, "10.88.0.5"))
	s.SetServices([]Definition{d})
	if err := s.SetDrain("web", "10.88.0.5", true); err != nil {
		t.Fatal(err)
	}
	s.SetEndpoints(nil)
	s.SetEndpoints([]registry.Endpoint{endpoint("c2", 4, "10.88.0.5")})
	wantBackends(t, s, "web", "10.88.0.5 weight=100 draining ifindex=4")
}

func TestUnknownNamesAreErrors(t *testing.T) {
	s := newStore(t)
	if err := s.SetDrain("web", "198.51.100.1", true); !errors.Is(err, ErrNoService) {
		t.Errorf("before anything is known: %v, want ErrNoService", err)
	}
	s.SetServices([]Definition{service("web", "10.96.0.1")})
	if err := s.SetDrain("web", "198.51.100.1", true); !errors.Is(err, ErrNoBackend) {
		t.Errorf("%v, want ErrNoBackend", err)
	}
	tooMuch := lb.MaxWeight + 1
	if err := s.SetWeight("web", "198.51.100.1", &tooMuch); err == nil {
		t.Error("weight above the maximum was accepted")
	}
}

func TestOverrideThatCannotBeSavedIsNotInForce(t *testing.T) {
	d := service("web", "10.96.0.1")
	d.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Weight: 100}}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := New("node-a", filepath.Join(file, "below"), lb.Timeouts{}, quiet)
	s.SetEndpoints(nil)
	s.SetServices([]Definition{d})
	if err := s.SetDrain("web", "198.51.100.1", true); err == nil {
		t.Fatal("no error")
	}
	wantBackends(t, s, "web", "198.51.100.1 weight=100 active ifindex=0")
}
