package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// validTCLB sets every key to something else than the default.
const validTCLB = `node:
  name: node-a
  address: 192.0.2.11
servicesDir: /srv/services.d
datapath: {mode: ebpf, hostStack: true, socketLB: true, antiSpoof: false, hairpinAddress: [169.254.78.1], maxServices: 10, maxBackends: 20, tableSlots: 4096}
listen: "[::1]:9465"
vipPool: [10.96.0.0/16, "fd00:96::/64"]
uplinks: [eth0]
announce: true
tunnel: {protocol: vxlan, port: 4790, vni: 7, snat: never, mtu: 1400}
nodes:
- {name: node-b, address: 192.0.2.12, subnets: [10.89.0.0/16], mac: "02:00:5e:10:00:02"}
- {name: node-c, address: "2001:db8::12"}
etcd: {endpoints: ["https://192.0.2.20:2379", "etcd.example:2379"], prefix: /lb, leaseTTL: 5s, restartGrace: 1m, user: tclb, passwordFile: /etc/p, tls: {ca: /ca, cert: /cert, key: /key}}
conntrack: {maxEntries: 64, tcpEstablished: 3h, tcpSyn: 500ms, tcpFin: 6s, udp: 7s, udpStream: 8s}
runtimes: {podman: /run/p.sock, containerd: off, cniConfig: [/srv/net.d], cniCache: /srv/cni}
`

func TestSettingsAreDecoded(t *testing.T) {
	got, findings := Parse("tclb.yaml", []byte(validTCLB))
	expect(t, findings, "")
	want := &Config{
		Node:        Node{Name: "node-a", Address: addrs("192.0.2.11")[0]},
		ServicesDir: "/srv/services.d",
		Datapath: Datapath{
			Mode: "ebpf", HostStack: true, SocketLB: true, HairpinAddress: addrs("169.254.78.1", "fd00:7c1b::1"),
			MaxServices: 10, MaxBackends: 20, TableSlots: 4096,
		},
		Listen:  "[::1]:9465",
		VIPPool: prefixes("10.96.0.0/16", "fd00:96::/64"),
		Uplinks: []string{"eth0"}, Announce: true,
		Tunnel: Tunnel{Protocol: "vxlan", Port: 4790, VNI: 7, SNAT: "never", MTU: 1400},
		Nodes: []Peer{
			{Name: "node-b", Address: addrs("192.0.2.12")[0], Subnets: prefixes("10.89.0.0/16"), MAC: "02:00:5e:10:00:02"},
			{Name: "node-c", Address: addrs("2001:db8::12")[0]},
		},
		Etcd: Etcd{
			Endpoints: []string{"https://192.0.2.20:2379", "etcd.example:2379"}, Prefix: "/lb", LeaseTTL: 5 * time.Second,
			RestartGrace: time.Minute, User: "tclb", PasswordFile: "/etc/p", TLS: TLS{"/ca", "/cert", "/key"},
		},
		Conntrack: Conntrack{MaxEntries: 64, Timeouts: lb.Timeouts{
			TCPEstablished: 3 * time.Hour, TCPSyn: 500 * time.Millisecond, TCPFin: 6 * time.Second,
			UDP: 7 * time.Second, UDPStream: 8 * time.Second,
		}},
		Runtimes: Runtimes{Podman: "/run/p.sock", Containerd: "off", CNIConfig: []string{"/srv/net.d"}, CNICache: "/srv/cni"},
	}
	want.file, want.at, want.etcd = got.file, got.at, got.etcd
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestEachMistakeInSettingsHasItsFinding(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"unknown key", "listen:", "lisen:", `6:1: lisen: unknown key "lisen": did you mean "listen"?`},
		{"node name", "name: node-a", "name: node a", `2:9: node.name: name "node a" is no host name: use letters, digits, - and . inside, at most 253 characters`},
		{"node address", "192.0.2.11", "127.0.0.1", `3:12: node.address: node address 127.0.0.1 is a loopback address, which containers cannot reach: want one outside 127.0.0.0/8 and ::1`},
		{"relative directory", "/srv/services.d", "services.d", `4:14: servicesDir: servicesDir "services.d" is no absolute path: begin with /`},
		{"mode", "mode: ebpf", "mode: xdp", `5:18: datapath.mode: unknown mode "xdp": want auto, ebpf or userspace`},
		{"boolean", "hostStack: true", "hostStack: on", `5:35: datapath.hostStack: hostStack "on" is neither true nor false: write true or false, without quotes`},
		{"two addresses of a family", "[169.254.78.1]", "[169.254.78.1, 169.254.78.2]", `5:106: datapath.hairpinAddress[1]: an address of family IPv4 is given twice: first on line 5`},
		{"no services", "maxServices: 10", "maxServices: 0", `5:120: datapath.maxServices: maxServices 0 is out of range: want 1 to 16777216`},
		{"listen without port", `"[::1]:9465"`, "127.0.0.1", `6:9: listen: listen "127.0.0.1" is no HOST:PORT: want one like 127.0.0.1:9464 or "[::1]:9464"`},
		{"listen on a name", `"[::1]:9465"`, "node-a:80", `6:9: listen: listen "node-a:80" has no IP address before the port: want one like 127.0.0.1:9464`},
		{"listen on a named port", `"[::1]:9465"`, "127.0.0.1:http", `6:9: listen: listen "127.0.0.1:http" has a wrong port: want 0 to 65535`},
		{"pool with host bits", "10.96.0.0/16", "10.96.0.1/16", `7:11: vipPool[0]: 10.96.0.1/16 has bits set behind the prefix: did you mean 10.96.0.0/16?`},
		{"pool of everything", "10.96.0.0/16", "0.0.0.0/0", `7:11: vipPool[0]: 0.0.0.0/0 is the unspecified address: give a real one`},
		{"two pools of a family", `"fd00:96::/64"`, "10.97.0.0/16", `7:25: vipPool[1]: a prefix of family IPv4 is given twice: first on line 7`},
		{"pool in a peer's subnet", "10.96.0.0/16", "10.89.64.0/18", `7:11: vipPool[0]: 10.89.64.0/18 overlaps the container subnet 10.89.0.0/16: choose a prefix that is not in use`},
		{"announce without uplinks", "uplinks: [eth0]", "uplinks: []", `9:11: announce: announce has no device to answer on: name one in uplinks`},
		{"tunnel protocol", "protocol: vxlan", "protocol: geneve", `10:20: tunnel.protocol: unknown protocol "geneve": want vxlan`},
		{"vni", "vni: 7", "vni: 16777216", `10:44: tunnel.vni: vni 16777216 is out of range: want 1 to 16777215`},
		{"mtu", "mtu: 1400", "mtu: 500", `10:65: tunnel.mtu: mtu 500 is out of range: want 1280 to 65535, or 0 to follow the underlay`},
		{"peer without address", `, address: "2001:db8::12"`, "", `13:3: nodes[1].address: address is missing: give the peer's underlay address`},
		{"peer twice", "name: node-c", "name: node-b", `13:10: nodes[1].name: node "node-b" is given twice: first on line 12`},
		{"peer's address twice", `"2001:db8::12"`, "192.0.2.12", `13:27: nodes[1].address: node address 192.0.2.12 is given twice: first on line 12`},
		{"peer's address in the pool", "192.0.2.12", "10.96.0.12", `7:11: vipPool[0]: 10.96.0.0/16 contains 10.96.0.12, the address of node "node-b": choose a prefix that is not in use`},
		{"own address in the pool", "192.0.2.11", "10.96.0.11", `7:11: vipPool[0]: 10.96.0.0/16 contains 10.96.0.11, the address of node "node-a": choose a prefix that is not in use`},
		{"own entry of another address", "name: node-c", "name: node-a", `13:27: nodes[1].address: node address 2001:db8::12 is not this node's own: node.address is 192.0.2.11`},
		{"own address of another name", `"2001:db8::12"`, "192.0.2.11", `13:27: nodes[1].address: node address 192.0.2.11 is this node's own: its entry is called "node-a", as node.name`},
		{"peer's mac", "02:00:5e:10:00:02", "02:00:5e", `12:69: nodes[0].mac: mac "02:00:5e" is no Ethernet address: want one like 02:00:5e:10:00:01`},
		{"tunnel port", "port: 4790", "port: 65536", `10:33: tunnel.port: port 65536 is out of range: want 1 to 65535`},
		{"snat", "snat: never", "snat: no", `10:53: tunnel.snat: unknown snat "no": want auto, always or never`},
		{"uplink of ours", "uplinks: [eth0]", "uplinks: [eth0, tclb0]", `8:17: uplinks[1]: "tclb0" leads nowhere outside: name the device that clients come in by`},
		{"etcd scheme", "https://192", "ftp://192", `14:20: etcd.endpoints[0]: value "ftp://192.0.2.20:2379" has an unknown scheme: want http or https`},
		{"etcd port", ".20:2379\"", ".20:99999\"", `14:20: etcd.endpoints[0]: value "https://192.0.2.20:99999" has a port out of range: want 1 to 65535`},
		{"etcd without port", "etcd.example:2379", "etcd.example", `14:47: etcd.endpoints[1]: value "etcd.example" is no server: want one like https://192.0.2.20:2379`},
		{"etcd prefix", "prefix: /lb", "prefix: lb/", `14:77: etcd.prefix: prefix "lb/" is no key prefix: want one like /tclb`},
		{"user without password", ", passwordFile: /etc/p", "", `14:7: etcd.passwordFile: passwordFile is missing: it goes with user`},
		{"key without certificate", "cert: /cert", `cert: ""`, `14:169: etcd.tls.cert: cert is empty: it goes with key`},
		{"timeout of zero", "udp: 7s", "udp: 0s", `15:81: conntrack.udp: udp 0s is out of range: want 100ms to 720h`},
		{"relative socket", "/run/p.sock", "podman.sock", `16:20: runtimes.podman: podman "podman.sock" is no absolute path: begin with /`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(validTCLB, tt.old) == 0 {
				t.Fatalf("%q is not in the valid file", tt.old)
			}
			c, findings := Parse("tclb.yaml", []byte(strings.Replace(validTCLB, tt.old, tt.new, 1)))
			expect(t, findings, "tclb.yaml:"+tt.want)
			if c != nil {
				t.Error("a file with findings gives settings")
			}
		})
	}
}

func TestMissingSettingsAreTheDefaultsUnlessNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tclb.yaml")
	c, findings, err := Load(path, false)
	if err != nil || len(findings) > 0 {
		t.Fatal(findings, err)
	}
	if d := diff(Default(), c); d != "" {
		t.Error(d)
	}
	if _, _, err := Load(path, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("explicit path: %v", err)
	}
	if err := os.WriteFile(path, []byte("listen: \"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, findings, err := Load(path, true); err != nil || len(findings) > 0 || c.Listen != "" {
		t.Error(c, findings, err)
	}
}

func TestRestartKeysNameWhatCannotChangeLive(t *testing.T) {
	old, _ := Parse("tclb.yaml", nil)
	c, findings := Parse("tclb.yaml", []byte(validTCLB))
	expect(t, findings, "")
	want := []string{
		"node.name", "servicesDir", "datapath.mode", "datapath.maxServices", "datapath.maxBackends", "datapath.tableSlots",
		"listen", "etcd", "conntrack.maxEntries", "runtimes",
	}
	if d := cmp.Diff(want, c.RestartKeys(old)); d != "" {
		t.Error(d)
	}
	if keys := c.RestartKeys(c); len(keys) > 0 {
		t.Error(keys)
	}
	c.KeepRestartKeys(old)
	if keys := c.RestartKeys(old); len(keys) > 0 || c.Node.Name != old.Node.Name || c.Node.Address == old.Node.Address {
		t.Errorf("kept: %v differ, node %+v", keys, c.Node)
	}
	live, _ := Parse("tclb.yaml", []byte("datapath: {hostStack: true}\nvipPool: [10.96.0.0/16]\nuplinks: [eth0]\n"))
	if keys := live.RestartKeys(old); len(keys) > 0 {
		t.Error(keys)
	}
}

// A setting that has no test above would be missing here: every field differs from its default.
func TestSettingsOfTheTestDifferFromTheDefaults(t *testing.T) {
	c, _ := Parse("tclb.yaml", []byte(validTCLB))
	same := sameFields(*Default(), *c)
	if want := []string{"Tunnel.Protocol"}; !slices.Equal(same, want) {
		t.Errorf("as by default: %v, want %v", same, want)
	}
}
