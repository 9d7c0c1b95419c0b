package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// valid is a services file that says everything. The cases below change one thing in it.
const valid = `services:
- name: web
  vips: [10.96.0.10, "fd00:96::10"]
  ports:
  - {name: http, protocol: tcp, port: 80, targetPort: 8080}
  - {name: dns, protocol: udp, port: 53}
  scheduler: bounded-load
  boundedLoad: {factor: 1.5}
  affinity: {mode: client-ip, timeout: 2h15m}
  backends:
  - {address: 10.88.0.5, weight: 50}
  - {address: 10.89.0.7, node: node-b, weight: 0}
  - {address: "2001:db8::9", state: draining}
  - {address: 198.51.100.8, vlan: {device: eth1, id: 100, mac: "02:00:5e:10:00:01"}}
  members: false
  networks: [shop]
  healthCheck: {type: http, port: 81, path: /up, expect: 204, interval: 1m, timeout: 500ms, rise: 1, fall: 4}
  outlier: {enabled: true}
  timeouts: {tcpEstablished: 3h, tcpSyn: 5s, tcpFin: 6s, udp: 7s, udpStream: 8s}
  dsr: true
  accelerate: true
  allow: [192.0.2.0/24, "2001:db8::/32"]
- name: api
  vips: [10.96.0.11]
  ports: [{port: 90}]
`

func TestServicesFileIsDecoded(t *testing.T) {
	f := ParseServices("web.yaml", "web.yaml", []byte(valid))
	expect(t, f.Findings, "")
	want := []lb.Service{{
		Name: "web", VIPs: addrs("10.96.0.10", "fd00:96::10"),
		Ports: []lb.Port{
			{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 8080},
			{Name: "dns", Protocol: lb.UDP, Port: 53, TargetPort: 53},
		},
		Scheduler: lb.BoundedLoad, BoundedLoad: 1.5,
		Affinity: lb.Affinity{Mode: lb.AffinityClientIP, Timeout: 135 * time.Minute},
		Backends: []lb.Backend{
			{Address: addrs("10.88.0.5")[0], Weight: 50},
			{Address: addrs("10.89.0.7")[0], Node: "node-b"},
			{Address: addrs("2001:db8::9")[0], Weight: 100, State: lb.Draining},
			{Address: addrs("198.51.100.8")[0], Weight: 100, VLAN: lb.VLAN{Device: "eth1", ID: 100, MAC: "02:00:5e:10:00:01"}},
		},
		Networks: []string{"shop"},
		HealthCheck: lb.HealthCheck{
			Type: "http", Port: 81, Path: "/up", Expect: 204,
			Interval: time.Minute, Timeout: 500 * time.Millisecond, Rise: 1, Fall: 4,
		},
		Outlier: lb.Outlier{Enabled: true},
		Timeouts: lb.Timeouts{
			TCPEstablished: 3 * time.Hour, TCPSyn: 5 * time.Second, TCPFin: 6 * time.Second,
			UDP: 7 * time.Second, UDPStream: 8 * time.Second,
		},
		DSR: true, Accelerate: true, Allow: prefixes("192.0.2.0/24", "2001:db8::/32"),
	}, {
		Name: "api", VIPs: addrs("10.96.0.11"),
		Ports:     []lb.Port{{Protocol: lb.TCP, Port: 90, TargetPort: 90}},
		Scheduler: lb.Maglev, BoundedLoad: 1.25, Affinity: lb.Affinity{Timeout: 3 * time.Hour}, Members: true,
		HealthCheck: lb.HealthCheck{Type: "none", Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
	}}
	if d := diff(want, Services([]File{f})); d != "" {
		t.Error(d)
	}
}

func TestEmptyServicesFilesDefineNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing yet\n", "---\n", "{}", "services: []\n", "\ufeffservices: []\n"} {
		f := ParseServices("f", "f", []byte(text))
		if len(f.Findings)+len(f.Services) > 0 {
			t.Errorf("%q: %v %v", text, f.Services, f.Findings)
		}
	}
}

func TestEachMistakeInAServiceHasItsFinding(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"unknown key", "backends:", "backend:", `10:3: services[0].backend: unknown key "backend": did you mean "backends"?`},
		{"key in another style", "targetPort: 8080", "target_port: 8080", `5:43: services[0].ports[0].target_port: unknown key "target_port": did you mean "targetPort"?`},
		{"key like no other", "enabled: true", "wanted: true", `18:13: services[0].outlier.wanted: unknown key "wanted": want enabled`},
		{"key twice", "dsr: true", "members: true", `20:3: services[0].members: key "members" is given twice: first on line 15`},
		{"key without value", "scheduler: bounded-load", "scheduler:", `7:13: services[0].scheduler: value is missing: give one or remove the key`},
		{"explicit null", "networks: [shop]", "networks: [~]", `16:14: services[0].networks[0]: value is missing: give one or remove the key`},
		{"merge key", "dsr: true", "<<: {dsr: true}", `20:3: services[0].<<: merge keys are not supported: write the keys out`},
		{"list as key", "dsr: true", "? [a]\n  : b", `20:5: services[0]: want a word as key, got a list`},

		{"name missing", "- name: api\n  vips", "- vips", `23:3: services[1].name: name is missing: give the service a name`},
		{"name is no label", "name: api", "name: API", `23:9: services[1].name: name "API" is no DNS label: use a-z, 0-9 and - inside, at most 63 characters`},
		{"name is a number", "name: api", "name: 80", `23:9: services[1].name: name "80" is not text: put it in quotes`},
		{"name twice", "name: api", "name: web", `23:9: services[1].name: service name "web" is given twice: first on line 2`},

		{"VIP is no address", "[10.96.0.11]", "[10.96.0.256]", `24:10: services[1].vips[0]: VIP "10.96.0.256" is no IP address: want one like 192.0.2.1 or "2001:db8::1"`},
		{"VIP is a number", "[10.96.0.11]", "[10]", `24:10: services[1].vips[0]: VIP "10" is no IP address: want one like 192.0.2.1 or "2001:db8::1"`},
		{"VIP is a prefix", "[10.96.0.11]", "[10.96.0.11/32]", `24:10: services[1].vips[0]: VIP 10.96.0.11/32 is a prefix: want one address, without /32`},
		{"VIP of an earlier service", "[10.96.0.11]", "[10.96.0.10]", `24:10: services[1].vips[0]: VIP 10.96.0.10 is given twice: first on line 3`},
		{"the same VIP mapped into IPv6", "[10.96.0.11]", `["::ffff:10.96.0.10"]`, `24:10: services[1].vips[0]: VIP 10.96.0.10 is given twice: first on line 3`},
		{"VIP twice in a service", "[10.96.0.11]", "[10.96.0.11, 10.96.0.11]", `24:22: services[1].vips[1]: VIP 10.96.0.11 is given twice: first on line 24`},
		{"VIP with zone", "[10.96.0.11]", `["fe80::1%eth0"]`, `24:10: services[1].vips[0]: VIP fe80::1%eth0 has a zone: write the address without %eth0`},
		{"VIP unspecified", "[10.96.0.11]", "[0.0.0.0]", `24:10: services[1].vips[0]: VIP 0.0.0.0 is the unspecified address: give a real one`},
		{"VIP multicast", "[10.96.0.11]", `["ff02::1"]`, `24:10: services[1].vips[0]: VIP ff02::1 is a multicast address: want one host's address`},
		{"VIP broadcast", "[10.96.0.11]", "[255.255.255.255]", `24:10: services[1].vips[0]: VIP 255.255.255.255 is the broadcast address: want one host's address`},
		{"VIP link-local", "[10.96.0.11]", `["fe80::1"]`, `24:10: services[1].vips[0]: VIP fe80::1 is a link-local address, which needs an interface: want a global or unique local one`},
		{"VIPs are no list", "[10.96.0.11]", "10.96.0.11", `24:9: services[1].vips: want a list, got "10.96.0.11": write [...] or begin each element with "- "`},

		{"ports missing", "\n  ports: [{port: 90}]", "", `23:3: services[1].ports: ports is missing: give at least one, such as {port: 80}`},
		{"ports empty", "[{port: 90}]", "[]", `25:10: services[1].ports: ports are empty: give at least one, such as {port: 80}`},
		{"port missing", "{port: 90}", "{name: a}", `25:11: services[1].ports[0].port: port is missing: give the port that clients connect to`},
		{"port 0", "port: 90", "port: 0", `25:18: services[1].ports[0].port: port 0 is out of range: want 1 to 65535`},
		{"port in quotes", "port: 90", `port: "90"`, `25:18: services[1].ports[0].port: port "90" is text: remove the quotes`},
		{"port in octal", "port: 90", "port: 0132", `25:18: services[1].ports[0].port: port "0132" is not a decimal number: want 1 to 65535`},
		{"port is a map", "port: 90", "port: {}", `25:18: services[1].ports[0].port: want one value, got a map`},
		{"port beyond all numbers", "port: 90", "port: 99999999999999999999", `25:18: services[1].ports[0].port: port 99999999999999999999 is out of range: want 1 to 65535`},
		{"targetPort 65536", "targetPort: 8080", "targetPort: 65536", `5:55: services[0].ports[0].targetPort: targetPort 65536 is out of range: want 1 to 65535`},
		{"port twice", "protocol: udp, port: 53", "protocol: tcp, port: 80", `6:38: services[0].ports[1].port: port 80/tcp is given twice: first on line 5`},
		{"port name twice", "name: dns", "name: http", `6:12: services[0].ports[1].name: port name "http" is given twice: first on line 5`},
		{"protocol", "protocol: udp", "protocol: sctp", `6:27: services[0].ports[1].protocol: unknown protocol "sctp": want tcp or udp`},

		{"scheduler", "scheduler: bounded-load", "scheduler: boundedload", `7:14: services[0].scheduler: unknown scheduler "boundedload": did you mean "bounded-load"?`},
		{"factor 1", "factor: 1.5", "factor: 1", `8:25: services[0].boundedLoad.factor: factor 1 is out of range: want more than 1, at most 100`},
		{"factor 1.0", "factor: 1.5", "factor: 1.0", `8:25: services[0].boundedLoad.factor: factor 1.0 is out of range: want more than 1, at most 100`},
		{"factor 0.5", "factor: 1.5", "factor: 0.5", `8:25: services[0].boundedLoad.factor: factor 0.5 is out of range: want more than 1, at most 100`},
		{"factor not a number", "factor: 1.5", "factor: .nan", `8:25: services[0].boundedLoad.factor: factor .nan is out of range: want more than 1, at most 100`},
		{"affinity mode", "mode: client-ip", "mode: cookie", `9:20: services[0].affinity.mode: unknown mode "cookie": want none or client-ip`},
		{"affinity timeout without unit", "timeout: 2h15m", "timeout: 3600", `9:40: services[0].affinity.timeout: timeout "3600" has no unit: write 3600s for seconds, or 500ms, 2h15m`},
		{"affinity timeout in days", "timeout: 2h15m", "timeout: 1d", `9:40: services[0].affinity.timeout: timeout "1d" is not a duration: write 500ms, 30s, 3h or 2h15m`},
		{"affinity timeout 0", "timeout: 2h15m", "timeout: 0", `9:40: services[0].affinity.timeout: timeout "0" has no unit: write 0s for seconds, or 500ms, 2h15m`},
		{"affinity timeout 0s", "timeout: 2h15m", "timeout: 0s", `9:40: services[0].affinity.timeout: timeout 0s is out of range: want 1s to 720h`},
		{"affinity timeout negative", "timeout: 2h15m", "timeout: -1s", `9:40: services[0].affinity.timeout: timeout -1s is out of range: want 1s to 720h`},

		{"backend is no map", "- {address: 10.88.0.5, weight: 50}", "- 10.88.0.5", `11:5: services[0].backends[0]: want a map (key: value), got "10.88.0.5"`},
		{"backend without address", "address: 10.88.0.5, ", "", `11:5: services[0].backends[0].address: address is missing: give the backend's address`},
		{"backend twice", "10.89.0.7, node: node-b", "10.88.0.5", `12:15: services[0].backends[1].address: backend 10.88.0.5 is given twice: first on line 11`},
		{"backend is the VIP", "10.88.0.5", "10.96.0.10", `11:15: services[0].backends[0].address: backend address 10.96.0.10 is a VIP of this service: give the address of who serves it`},
		{"backend of a family without VIP", `[10.96.0.10, "fd00:96::10"]`, "[10.96.0.10]", `13:15: services[0].backends[2].address: backend address 2001:db8::9 is IPv6, but the service has no IPv6 VIP: add one to vips or remove the backend`},
		{"weight 1001", "weight: 50", "weight: 1001", `11:34: services[0].backends[0].weight: weight 1001 is out of range: want 0 to 1000`},
		{"weight -1", "weight: 50", "weight: -1", `11:34: services[0].backends[0].weight: weight -1 is out of range: want 0 to 1000`},
		{"weight 1.5", "weight: 50", "weight: 1.5", `11:34: services[0].backends[0].weight: weight 1.5 is not a whole number: want 0 to 1000`},
		{"state", "state: draining", "state: unhealthy", `13:37: services[0].backends[2].state: unknown state "unhealthy": want active or draining`},
		{"node", "node: node-b", "node: a/b", `12:32: services[0].backends[1].node: node "a/b" is no host name: use letters, digits, - and . inside, at most 253 characters`},
		{"vlan without device", "device: eth1, ", "", `14:35: services[0].backends[3].vlan.device: device is missing: give the device that carries the tag`},
		{"vlan id", "id: 100", "id: 4095", `14:54: services[0].backends[3].vlan.id: id 4095 is out of range: want 1 to 4094`},
		{"vlan device", "device: eth1", "device: eth1.100.too.long", `14:44: services[0].backends[3].vlan.device: device "eth1.100.too.long" is no device name: 1 to 15 characters without / : and spaces`},
		{"vlan mac of a group", "02:00:5e", "01:00:5e", `14:64: services[0].backends[3].vlan.mac: mac "01:00:5e:10:00:01" is a group address: want one host's`},
		{"vlan and node", "10.89.0.7, node: node-b", "10.89.0.7, node: node-b, vlan: {device: eth1, id: 5}", `12:32: services[0].backends[1].node: backend 10.89.0.7 has a node and a vlan: leave out node, every node reaches it by a device of its own`},
		{"backend twice in a vlan", "10.89.0.7, node: node-b", "198.51.100.8, vlan: {device: eth1, id: 100}", `14:15: services[0].backends[3].address: backend 198.51.100.8 in VLAN eth1.100 is given twice: first on line 12`},

		{"members: yes", "members: false", "members: yes", `15:12: services[0].members: members "yes" is neither true nor false: write true or false, without quotes`},
		{"network twice", "[shop]", "[shop, shop]", `16:20: services[0].networks[1]: shop is given twice: first on line 16`},
		{"health check type", "type: http", "type: https", `17:23: services[0].healthCheck.type: unknown type "https": did you mean "http"?`},
		{"health check without type", "type: http, ", "", `17:16: services[0].healthCheck.type: type is missing: want none, tcp or http`},
		{"tcp check with path", "type: http, port: 81, path: /up, expect: 204", "type: tcp, path: /up", `17:34: services[0].healthCheck.path: path is for type http: remove it or set type: http`},
		{"check path", "/up", "up", `17:45: services[0].healthCheck.path: path "up" is no path: begin with /`},
		{"check expect", "expect: 204", "expect: 20", `17:58: services[0].healthCheck.expect: expect 20 is out of range: want 100 to 599`},
		{"check rise", "rise: 1", "rise: 0", `17:99: services[0].healthCheck.rise: rise 0 is out of range: want 1 to 100`},
		{"check port", "port: 81", "port: 0", `17:35: services[0].healthCheck.port: port 0 is out of range: want 1 to 65535`},
		{"check interval", "interval: 1m", "interval: 10ms", `17:73: services[0].healthCheck.interval: interval 10ms is out of range: want 100ms to 24h`},
		{"check timeout beyond the interval", "timeout: 500ms", "timeout: 61s", `17:86: services[0].healthCheck.timeout: timeout 1m1s is longer than the interval 1m: a probe must end before the next begins`},
		{"check timeout beyond the default interval", "interval: 1m, timeout: 500ms", "timeout: 3s", `17:72: services[0].healthCheck.timeout: timeout 3s is longer than the interval 2s: a probe must end before the next begins`},
		{"check fall", "fall: 4", "fall: 101", `17:108: services[0].healthCheck.fall: fall 101 is out of range: want 1 to 100`},
		{"timeouts", "udp: 7s", "udp: 1ms", `19:63: services[0].timeouts.udp: udp 1ms is out of range: want 100ms to 720h`},
		{"allow without length", "192.0.2.0/24", "192.0.2.1", `22:11: services[0].allow[0]: 192.0.2.1 has no prefix length: write 192.0.2.1/32 for this address alone`},
		{"allow with host bits", "192.0.2.0/24", "192.0.2.1/24", `22:11: services[0].allow[0]: 192.0.2.1/24 has bits set behind the prefix: did you mean 192.0.2.0/24?`},

		{"text in several lines", "state: draining", `state: "a\nb"`, `13:37: services[0].backends[2].state: unknown state "a\nb": want active or draining`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(valid, tt.old) == 0 {
				t.Fatalf("%q is not in the valid file", tt.old)
			}
			f := ParseServices("web.yaml", "web.yaml", []byte(strings.Replace(valid, tt.old, tt.new, 1)))
			expect(t, f.Findings, "web.yaml:"+tt.want)
		})
	}
}

// VLANs may have the same addresses, and the link may too.
func TestOneAddressInSeveralVLANs(t *testing.T) {
	f := ParseServices("f", "f", []byte(`services:
- name: a
  ports: [{port: 80}]
  backends:
  - {address: 198.51.100.8, vlan: {device: eth1, id: 100}}
  - {address: 198.51.100.8, vlan: {device: eth1, id: 200}}
  - {address: 198.51.100.8, vlan: {device: eth2, id: 100}}
  - {address: 198.51.100.8}
  - {address: 198.51.100.8, node: node-b}
`))
	expect(t, f.Findings, "")
	if n := len(f.Services[0].Service.Backends); n != 5 {
		t.Errorf("%d backends", n)
	}
}

func TestCheckWithoutTCPPortNeedsItsOwn(t *testing.T) {
	f := ParseServices("f", "f", []byte("services: [{name: a, ports: [{protocol: udp, port: 53}], healthCheck: {type: tcp}}]"))
	expect(t, f.Findings, "f:1:71: services[0].healthCheck.port: port is missing: the service has no tcp port to take it from")
}

func TestCheckTimeoutFitsAShortInterval(t *testing.T) {
	f := ParseServices("f", "f", []byte("services: [{name: a, ports: [{port: 80}], healthCheck: {type: tcp, interval: 300ms}}]"))
	expect(t, f.Findings, "")
	if h := f.Services[0].Service.HealthCheck; h.Timeout != 300*time.Millisecond {
		t.Errorf("timeout %s, want the interval's 300ms", h.Timeout)
	}
}

func TestAliasesAreFollowed(t *testing.T) {
	f := ParseServices("f", "f", []byte(`services:
- {name: a, vips: [10.96.0.1], ports: &ports [{port: 80}], backends: [&b {address: 10.88.0.1, weight: 1001}, *b]}
- {name: b, vips: [10.96.0.2], ports: *ports}
`))
	// The second backend is what the alias says, where the alias stands.
	expect(t, f.Findings,
		"f:2:103: services[0].backends[0].weight: weight 1001 is out of range: want 0 to 1000",
		"f:2:110: services[0].backends[1].weight: weight 1001 is out of range: want 0 to 1000",
		"f:2:110: services[0].backends[1].address: backend 10.88.0.1 is given twice: first on line 2")
	if got := f.Services[1].Service.Ports; len(got) != 1 || got[0].Port != 80 {
		t.Errorf("ports of b: %v", got)
	}
}

// All mistakes of a file are found at once, in the order of the file.
func TestTenMistakesAreTenFindings(t *testing.T) {
	data, err := os.ReadFile("testdata/ten-mistakes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/ten-mistakes.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := lines(ParseServices("ten-mistakes.yaml", "ten-mistakes.yaml", data).Findings)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
	if n := strings.Count(got, "\n"); n != 10 {
		t.Errorf("%d findings", n)
	}
}

func TestFindingsAreCutOff(t *testing.T) {
	text := "services:\n" + strings.Repeat("- {nam: x}\n", maxFindings)
	got := ParseServices("f", "f", []byte(text)).Findings
	if len(got) != maxFindings+1 || !strings.Contains(got[maxFindings].Reason, "the rest is not shown") {
		t.Errorf("%d findings, the last is %v", len(got), got[len(got)-1])
	}
}

// BenchmarkParseServices reads 100 services with 5 backends each: what a change of one file costs.
func BenchmarkParseServices(b *testing.B) {
	var text strings.Builder
	text.WriteString("services:\n")
	for i := range 100 {
		fmt.Fprintf(&text, "- name: s%d\n  vips: [10.96.0.%d]\n  ports: [{port: 80}]\n  backends:\n", i, i+1)
		for j := range 5 {
			fmt.Fprintf(&text, "  - {address: 10.88.%d.%d}\n", j, i+1)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if f := ParseServices("f", "f", []byte(text.String())); len(f.Findings) > 0 {
			b.Fatal(f.Findings)
		}
	}
}
