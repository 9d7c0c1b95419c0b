package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Parse reads tclb.yaml from memory; file is its name in findings. With findings there is no Config.
func Parse(file string, data []byte) (*Config, []Finding) {
	rep := &report{file: file}
	c := Default()
	c.file = file
	if root := parseDocument(rep, data); root != nil {
		newCursor(rep, root).fields(c.read)
	}
	if len(rep.findings) > 0 {
		return nil, rep.sorted()
	}
	return c, nil
}

// read decodes the top level.
func (c *Config) read(m *mapping) {
	m.fields("node", c.Node.read)
	set(m, "servicesDir", &c.ServicesDir, absolute)
	m.fields("datapath", c.Datapath.read)
	set(m, "listen", &c.Listen, orEmpty(listenAddress))
	c.readVIPPool(m)
	setList(m, "uplinks", &c.Uplinks, uplink)
	if announce, ok := m.get("announce"); ok {
		c.readAnnounce(announce)
	}
	m.fields("tunnel", c.Tunnel.read)
	c.readNodes(m)
	c.etcd = make(map[string]spot)
	m.fields("etcd", c.readEtcd)
	m.fields("conntrack", c.Conntrack.read)
	m.fields("runtimes", c.Runtimes.read)
	for _, f := range c.CheckSubnets(c.peerSubnets()) {
		m.rep.add(position{f.Line, f.Column}, f.Key, f.Reason)
	}
	c.checkHosts(m.rep)
	if c.Datapath.Mode == ModeUserspace {
		c.checkUserspace(m)
	}
}

func (c *Config) readAnnounce(at cursor) {
	on, _ := value(at, boolean)
	if c.Announce = on; on && len(c.Uplinks) == 0 && c.Datapath.Mode != ModeUserspace {
		at.fail("announce has no device to answer on: name one in uplinks")
	}
}

// readVIPPool decodes the pool: one prefix a family, since a service gets one VIP of each.
func (c *Config) readVIPPool(m *mapping) {
	c.at = make(map[netip.Prefix]position)
	families := make(firsts[bool])
	for _, e := range m.elements("vipPool") {
		p, ok := value(e, c.poolPrefix)
		if ok && families.add(e, p.Addr().Is4(), "a prefix of family "+family(p.Addr())) {
			c.VIPPool = append(c.VIPPool, p)
			c.at[p] = e.at
		}
	}
}

// poolPrefix accepts a prefix of addresses that can be VIPs.
func (c *Config) poolPrefix(s scalar) (netip.Prefix, error) {
	p, err := prefix(s)
	local := c.Datapath.Mode == ModeUserspace && p.Addr().IsLoopback()
	if err == nil && !local {
		if wrong := checkUnicast(p.Addr()); wrong != nil {
			err = fmt.Errorf("%s %w", p, wrong)
		}
	}
	return p, err
}

func (n *Node) read(m *mapping) {
	set(m, "name", &n.Name, nodeName)
	set(m, "address", &n.Address, unicast("node address"))
}

func (d *Datapath) read(m *mapping) {
	set(m, "mode", &d.Mode, choice(words(ModeAuto, ModeEBPF, ModeUserspace)))
	set(m, "hostStack", &d.HostStack, boolean)
	set(m, "socketLB", &d.SocketLB, boolean)
	set(m, "antiSpoof", &d.AntiSpoof, boolean)
	families := make(firsts[bool])
	for _, e := range m.elements("hairpinAddress") {
		a, ok := value(e, unicast("hairpin address"))
		if !ok || !families.add(e, a.Is4(), "an address of family "+family(a)) {
			continue
		}
		for i, old := range d.HairpinAddress {
			if old.Is4() == a.Is4() {
				d.HairpinAddress[i] = a
			}
		}
	}
	set(m, "maxServices", &d.MaxServices, integer(1, 1<<24))
	set(m, "maxBackends", &d.MaxBackends, integer(1, 1<<24))
	set(m, "tableSlots", &d.TableSlots, integer(1024, 1<<28))
}

func (t *Tunnel) read(m *mapping) {
	set(m, "protocol", &t.Protocol, choice(words("vxlan")))
	set(m, "port", &t.Port, portNumber)
	set(m, "vni", &t.VNI, integer[uint32](1, 1<<24-1))
	set(m, "snat", &t.SNAT, choice(words("auto", "always", "never")))
	set(m, "mtu", &t.MTU, tunnelMTU)
}

// portNumber accepts a port of a transport protocol.
var portNumber = integer[uint16](1, math.MaxUint16)

// uplink accepts a device that others can be behind.
func uplink(s scalar) (string, error) {
	name, err := device(s)
	if err == nil && (name == "lo" || strings.HasPrefix(name, "tclb")) {
		err = fmt.Errorf("%s leads nowhere outside: name the device that clients come in by", show(name))
	}
	return name, err
}

// tunnelMTU accepts 0 for "as the underlay allows", or what IPv6 needs at least.
func tunnelMTU(s scalar) (int, error) {
	n, err := integer(0, math.MaxUint16)(s)
	if err == nil && n != 0 && n < 1280 {
		err = errors.New("mtu " + s.text + " is out of range: want 1280 to 65535, or 0 to follow the underlay")
	}
	return n, err
}

// readNodes decodes the static peers. Names and addresses must differ; subnets may not, because
// container runtimes give every host the same ones.
func (c *Config) readNodes(m *mapping) {
	names, addresses := make(firsts[string]), make(firsts[netip.Addr])
	for _, e := range m.elements("nodes") {
		e.fields(func(m *mapping) {
			var p Peer
			m.require("name", "give the peer's node.name")
			m.require("address", "give the peer's underlay address")
			if at, ok := m.get("name"); ok {
				if p.Name, ok = value(at, nodeName); ok {
					names.add(at, p.Name, "node "+show(p.Name))
				}
			}
			if at, ok := m.get("address"); ok {
				if p.Address, ok = value(at, unicast("node address")); ok {
					addresses.add(at, p.Address, "node address "+p.Address.String())
					c.checkOwnEntry(at, &p)
				}
			}
			setList(m, "subnets", &p.Subnets, prefix)
			set(m, "mac", &p.MAC, orEmpty(hardwareAddress))
			c.Nodes = append(c.Nodes, p)
		})
	}
}

// checkOwnEntry records that this node's own entry says something else than key node.
func (c *Config) checkOwnEntry(at cursor, p *Peer) {
	own := c.Node.Address
	switch same := p.Name == c.Node.Name; {
	case !own.IsValid() || same == (own == p.Address):
	case same:
		at.fail("node address %s is not this node's own: node.address is %s", p.Address, own)
	default:
		at.fail("node address %s is this node's own: its entry is called %s, as node.name", p.Address, show(c.Node.Name))
	}
}

func (c *Config) readEtcd(m *mapping) {
	e := &c.Etcd
	setList(m, "endpoints", &e.Endpoints, endpointURL)
	set(m, "prefix", &e.Prefix, etcdPrefix)
	set(m, "leaseTTL", &e.LeaseTTL, duration(2*time.Second, time.Hour))
	set(m, "restartGrace", &e.RestartGrace, duration(0, 24*time.Hour))
	set(m, "user", &e.User, text)
	set(m, keyPassword, &e.PasswordFile, orEmpty(absolute))
	c.spotEtcd(m, keyPassword)
	m.fields("tls", c.readTLS)
	m.together("user", e.User, "passwordFile", e.PasswordFile)
}

func (c *Config) readTLS(m *mapping) {
	t := &c.Etcd.TLS
	set(m, keyCA, &t.CA, orEmpty(absolute))
	set(m, keyCert, &t.Cert, orEmpty(absolute))
	c.spotEtcd(m, keyCA)
	c.spotEtcd(m, keyCert)
	set(m, "key", &t.Key, orEmpty(absolute))
	m.together("cert", t.Cert, "key", t.Key)
}

// together records a finding if just one of two settings that need each other is given.
func (m *mapping) together(a, valueA, b, valueB string) {
	if valueA == "" {
		a, valueA, b, valueB = b, valueB, a, valueA
	}
	if valueA == "" || valueB != "" {
		return
	}
	if at, ok := m.get(b); ok && at.node.Value == "" {
		at.fail("%s is empty: it goes with %s", b, a)
	}
	m.require(b, "it goes with "+a)
}

// etcdPrefix accepts the beginning of keys, without a slash at the end.
var etcdPrefix = matching(func(s string) error {
	if len(s) < 2 || !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.Contains(s, "//") {
		return errors.New("is no key prefix: want one like /tclb")
	}
	return nil
})

func (c *Conntrack) read(m *mapping) {
	set(m, "maxEntries", &c.MaxEntries, integer(16, 1<<26))
	readTimeouts(m, &c.Timeouts)
}

func (r *Runtimes) read(m *mapping) {
	set(m, "podman", &r.Podman, orEmpty(socketOrOff))
	set(m, "containerd", &r.Containerd, orEmpty(socketOrOff))
	setList(m, "cniConfig", &r.CNIConfig, absolute)
	set(m, "cniCache", &r.CNICache, absolute)
}

// socketOrOff accepts the path of a socket, or a word for none.
func socketOrOff(s scalar) (string, error) {
	if s.tag == "!!str" && s.text == "off" {
		return s.text, nil
	}
	return absolute(s)
}

// idle accepts how long a flow may be silent.
var idle = duration(100*time.Millisecond, 30*24*time.Hour)

// readTimeouts decodes the timeouts that tclb.yaml and each service can set.
func readTimeouts(m *mapping, t *lb.Timeouts) {
	set(m, "tcpEstablished", &t.TCPEstablished, idle)
	set(m, "tcpSyn", &t.TCPSyn, idle)
	set(m, "tcpFin", &t.TCPFin, idle)
	set(m, "udp", &t.UDP, idle)
	set(m, "udpStream", &t.UDPStream, idle)
}
