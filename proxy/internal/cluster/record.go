package cluster

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Layout of the keys below <prefix>/v1/; docs/etcd.md explains each.
const (
	layout     = "/v1/"
	nodesDir   = "nodes/"     // nodes/<name>: Node, under the node's lease
	membersDir = "members/"   // members/<node>/<endpoint id>: member, under the lease
	healthDir  = "health/"    // health/<node>/<service>: []state.PeerHealth, under the lease
	serviceDir = "services/"  // services/<name>: a services file of one service, vips set
	vipsDir    = "vips/"      // vips/<address>: the service that has it
	overridDir = "overrides/" // overrides/<service>/<node or _>/<address>: state.Override
	tablesDir  = "tables/"    // tables/<service>/<family>[-<hash>]: table
)

// Node is a node as it presents itself.
type Node struct {
	Name    string         `json:"name"`
	Address netip.Addr     `json:"address"` // underlay address that peers tunnel to
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	MAC     string         `json:"mac,omitempty"` // "" for nodes with tclb: it follows from the name
	MTU     int            `json:"mtu,omitempty"`
	Version string         `json:"version,omitempty"`
	Started time.Time      `json:"started"`

	// Instance tells two nodes apart that were given one name.
	Instance string `json:"instance,omitempty"`
}

// member is what other nodes need of an attached container.
type member struct {
	ID          string       `json:"id"`
	ContainerID string       `json:"containerID"`
	Ifname      string       `json:"ifname"`
	Container   string       `json:"container,omitempty"`
	Network     string       `json:"network,omitempty"`
	Addresses   []netip.Addr `json:"addresses"`
	Services    []string     `json:"services,omitempty"`
	Source      string       `json:"source,omitempty"`
	Names       []string     `json:"names,omitempty"`
	Weight      *int         `json:"weight,omitempty"`
	Port        uint16       `json:"port,omitempty"`
	Created     time.Time    `json:"created"`
}

func memberOf(e *registry.Endpoint) member {
	return member{
		ID: e.ID, ContainerID: e.ContainerID, Ifname: e.Ifname, Container: e.Container, Network: e.Network,
		Addresses: e.Addresses, Services: e.Services, Source: e.Source, Names: e.Names, Weight: e.Weight,
		Port: e.Port, Created: e.Created,
	}
}

func (m *member) endpoint() registry.Endpoint {
	return registry.Endpoint{
		ID: m.ID, ContainerID: m.ContainerID, Ifname: m.Ifname, Container: m.Container, Network: m.Network,
		Addresses: m.Addresses, Services: m.Services, Source: m.Source, Names: m.Names, Weight: m.Weight,
		Port: m.Port, Created: m.Created,
	}
}

// table is a shared base table: who leads it, and its stored form.
type table struct {
	Owner string `json:"owner"`
	data  []byte // deflated
}

// errForeign says that a key or value is none of ours.
var errForeign = errors.New("not tclb's")

// decodeJSON reads a value strictly enough to notice another program's.
func decodeJSON(data []byte, to any) error {
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	return nil
}

func decodeNode(name string, data []byte) (Node, error) {
	var n Node
	if err := decodeJSON(data, &n); err != nil {
		return n, err
	}
	if n.Name != name {
		return n, fmt.Errorf("%w: it names node %q", errForeign, n.Name)
	}
	if err := config.CheckNodeName(name); err != nil {
		return n, fmt.Errorf("node name %q %w", name, err)
	}
	if n.Address.IsValid() { // a node that just starts may not know it
		if err := config.CheckBackend(n.Address); err != nil {
			return n, fmt.Errorf("address %s %w", n.Address, err)
		}
	}
	return n, nil
}

func decodeMember(id string, data []byte) (registry.Endpoint, error) {
	var m member
	if err := decodeJSON(data, &m); err != nil {
		return registry.Endpoint{}, err
	}
	if m.ID != id || len(m.Addresses) == 0 {
		return registry.Endpoint{}, fmt.Errorf("%w: no addresses, or another endpoint's", errForeign)
	}
	for _, a := range m.Addresses {
		if err := config.CheckBackend(a); err != nil {
			return registry.Endpoint{}, fmt.Errorf("address %s %w", a, err)
		}
	}
	return m.endpoint(), nil
}

// decodeService reads a service of etcd, which has its VIPs.
func decodeService(key, name string, data []byte) (config.File, error) {
	f := config.ParseServices(fileOf(name), key, data)
	switch {
	case len(f.Findings) > 0:
		return f, errors.New(f.Findings[0].String())
	case len(f.Services) != 1 || f.Services[0].Service.Name != name:
		return f, fmt.Errorf("%w: want one service called %s", errForeign, name)
	case len(f.Services[0].Service.VIPs) == 0:
		return f, errors.New("it has no vips: put it with tclb service apply")
	}
	if wrong := f.CheckShared(); len(wrong) > 0 {
		return f, errors.New(wrong[0].String())
	}
	return f, nil
}

// fileOf is what findings call a service of etcd.
func fileOf(name string) string { return state.FileEtcd + ":" + name }

func overrideKey(o *state.Override) string {
	node := o.Node
	if node == "" {
		node = "_" // no node can be called so
	}
	return overridDir + o.Service + "/" + node + "/" + o.Address.String()
}

func encodeOverride(o state.Override) ([]byte, error) {
	o.Unsent = false
	return json.Marshal(o)
}

func decodeOverride(key string, data []byte) (state.Override, error) {
	var o state.Override
	if err := decodeJSON(data, &o); err != nil {
		return o, err
	}
	if overrideKey(&o) != key {
		return o, fmt.Errorf("%w: it names %s", errForeign, overrideKey(&o))
	}
	if o.Weight != nil && (*o.Weight < 0 || *o.Weight > lb.MaxWeight) {
		return o, fmt.Errorf("weight %d is not between 0 and %d", *o.Weight, lb.MaxWeight)
	}
	return o, nil
}

// maxTable keeps a value below what etcd takes, 1.5 MB.
const maxTable = 1 << 20

// encodeTable returns a table's value: a line of JSON that says who leads it, then the base, deflated.
func encodeTable(owner string, base []byte) ([]byte, error) {
	head, err := json.Marshal(table{Owner: owner})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(append(head, '\n'))
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(base); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if out.Len() > maxTable {
		return nil, fmt.Errorf("table of %d bytes is too large for etcd: each node makes its own", out.Len())
	}
	return out.Bytes(), nil
}

func decodeTable(data []byte) (table, error) {
	head, rest, ok := bytes.Cut(data, []byte("\n"))
	var t table
	if !ok {
		return t, errForeign
	}
	if err := decodeJSON(head, &t); err != nil {
		return t, err
	}
	if t.Owner == "" {
		return t, fmt.Errorf("%w: nobody leads it", errForeign)
	}
	t.data = rest
	return t, nil
}

// base inflates the table's base. What a broken value can make of itself is bounded.
func (t table) base() (*sched.Base, error) {
	r := flate.NewReader(bytes.NewReader(t.data))
	data, err := io.ReadAll(io.LimitReader(r, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	base := new(sched.Base)
	if err := base.UnmarshalBinary(data); err != nil {
		return nil, err
	}
	return base, nil
}

// split cuts "a/b/c" below a directory into its parts, if there are n of them and none is empty.
func split(rest string, n int) ([]string, bool) {
	parts := strings.Split(rest, "/")
	if len(parts) != n {
		return nil, false
	}
	for _, p := range parts {
		if p == "" {
			return nil, false
		}
	}
	return parts, true
}
