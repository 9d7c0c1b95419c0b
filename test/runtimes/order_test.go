package runtimes

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// space makes a network namespace and a web server in it, started once the network is there.
func (m *machine) space(name string) string {
	m.Helper()
	m.run("ip", "netns", "add", name)
	return "/run/netns/" + name
}

// serveIn starts a server in a namespace that answers with a word.
func (m *machine) serveIn(name, word string) {
	m.Helper()
	m.run("sh", "-c", fmt.Sprintf("mkdir -p /run/www-%[1]s && echo %[2]s >/run/www-%[1]s/index.html && ip netns exec %[1]s busybox httpd -p 8080 -h /run/www-%[1]s", name, word))
}

// endSpace ends what runs in a namespace, and with it the namespace and its veth.
func (m *machine) endSpace(name string) {
	m.Helper()
	m.run("sh", "-c", fmt.Sprintf("ip netns pids %[1]s | xargs -r kill -9; ip netns delete %[1]s", name))
}

// askIn sends requests from a namespace and returns who answered how often.
func (m *machine) askIn(name, address string, n int) map[string]int {
	m.Helper()
	loop := fmt.Sprintf("i=0; while [ $i -lt %d ]; do timeout 5 busybox wget -q -O- http://%s/ || echo failed; i=$((i+1)); done", n, address)
	answers := make(map[string]int)
	for _, word := range strings.Fields(m.run("ip", "netns", "exec", name, "sh", "-c", loop)) {
		answers[word]++
	}
	return answers
}

// TestNerdctlsOrder makes nerdctl's calls: a DEL before the ADD, from a hook; a DEL, without a
// namespace, before the container is killed, so that its address is given away while it still runs; and
// one more DEL afterwards.
func TestNerdctlsOrder(t *testing.T) {
	m := newMachine(t)
	const conflist = "/etc/cni/net.d/10-tclb.conflist"
	m.write(conflist, m.sample("nerdctl.conflist"))
	m.startProxy()
	nerdctl := func(verb, id, netns string) {
		t.Helper()
		m.must(m.cni(call{Verb: verb, Conflist: conflist, ID: "default-" + id, Netns: netns, Args: [][2]string{
			{"NERDCTL_CNI_DHCP_HOSTNAME", "web"}, {"IgnoreUnknown", "1"}, {"IP", "10.89.1.50"},
		}}))
	}
	m.must(m.cni(call{Verb: "ADD", Conflist: conflist, ID: "default-client", Netns: m.space("client")}))
	first, second := m.space("first"), m.space("second")

	nerdctl("DEL", "first", "")
	nerdctl("ADD", "first", first)
	m.serveIn("first", "1")
	m.waitBackends("web", 1)
	if answers := m.askIn("client", vip, 10); answers["1"] != 10 {
		t.Errorf("answers %v", answers)
	}
	nerdctl("DEL", "first", "")
	m.waitBackends("web", 0)
	if answers := m.askIn("client", vip, 3); answers["failed"] != 3 {
		t.Errorf("answers after the DEL: %v", answers)
	}

	// The first still runs, with the address that the second gets.
	nerdctl("DEL", "second", "")
	nerdctl("ADD", "second", second)
	m.serveIn("second", "2")
	m.waitBackends("web", 1)
	if answers := m.askIn("client", vip, 10); answers["2"] != 10 {
		t.Errorf("answers of the second: %v", answers)
	}
	m.endSpace("first")
	if answers := m.askIn("client", vip, 10); answers["2"] != 10 {
		t.Errorf("answers after the first's end: %v", answers)
	}
	nerdctl("DEL", "second", "")
	m.endSpace("second")
	nerdctl("DEL", "second", "")
	m.must(m.cni(call{Verb: "DEL", Conflist: conflist, ID: "default-client", Netns: "/run/netns/client"}))
	m.endSpace("client")
	m.expectNothingLeft("web")
}

// TestAPodOfCRI makes the calls of containerd's CRI: annotations by a capability, and two DELs.
func TestAPodOfCRI(t *testing.T) {
	m := newMachine(t)
	const conflist = "/etc/cni/net.d/10-tclb.conflist"
	m.write(conflist, m.sample("cri.conflist"))
	m.startProxy()
	id := strings.Repeat("65c74196", 8)
	netns := m.space("cni-pod")
	pod := call{
		Verb: "ADD", Conflist: conflist, ID: id, Netns: netns,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", "shop"},
			{"K8S_POD_NAME", "web-0"},
			{"K8S_POD_INFRA_CONTAINER_ID", id},
			{"K8S_POD_UID", "uid-1"},
		},
		Capabilities: map[string]any{
			"io.kubernetes.cri.pod-annotations": map[string]string{"tclb.services": "web", "tclb.weight": "3", "other": "x"},
			"portMappings":                      []map[string]any{{"HostPort": 18095, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "127.0.0.1"}},
			"dns":                               map[string]any{"Servers": []string{"10.0.0.1"}, "Options": nil},
		},
	}
	m.must(m.cni(pod))
	m.serveIn("cni-pod", "pod")
	m.waitServices("web-0", "web")
	if rows := m.waitBackends("web", 1); rows[0].Weight != 3 {
		t.Errorf("backends %v", rows)
	}
	if answers := m.askIn("cni-pod", vip, 5); answers["pod"] != 5 {
		t.Errorf("the pod's answers to itself: %v", answers)
	}
	pod.Verb = "DEL"
	m.must(m.cni(pod))
	m.endSpace("cni-pod")
	pod.Netns = ""
	m.must(m.cni(pod))
	m.expectNothingLeft("web")
}

// TestBandwidthKeepsShaping puts upstream's bandwidth plugin before ours. What goes from container to
// container directly keeps to its limit, and the other way is left as fast as it was.
func TestBandwidthKeepsShaping(t *testing.T) {
	m := newMachine(t)
	const conflist = "/etc/cni/net.d/10-tclb.conflist"
	m.write(conflist, strings.Replace(m.sample("cri.conflist"), `"type": "firewall"`,
		`"type": "bandwidth", "ingressRate": 16000000, "ingressBurst": 800000, "egressRate": 16000000, "egressBurst": 800000`, 1))
	m.startProxy()
	for _, name := range []string{"client", "server"} {
		capabilities := map[string]any{}
		if name == "server" {
			capabilities["aliases"] = []string{"web"}
		}
		m.must(m.cni(call{Verb: "ADD", Conflist: conflist, ID: name, Netns: m.space(name), Capabilities: capabilities}))
	}
	backend := m.waitBackends("web", 1)[0]
	m.serveIn("server", "hello")
	if answers := m.askIn("client", vip, 5); answers["hello"] != 5 {
		t.Errorf("answers %v", answers)
	}
	const bytes = 6_000_000
	m.run("sh", "-c", fmt.Sprintf("head -c %d /dev/zero >/run/www-server/large", bytes))
	began := time.Now()
	got := m.run("ip", "netns", "exec", "client", "sh", "-c", fmt.Sprintf("busybox wget -q -O- http://%s:8080/large | wc -c", backend.Address))
	took := time.Since(began)
	// 16 Mbit/s are 3 s; less the burst, and with time to spare for timers.
	if n, err := strconv.Atoi(got); err != nil || n != bytes || took < 2*time.Second {
		t.Errorf("%s bytes in %s, which is faster than 16 Mbit/s", got, took)
	}
	for _, name := range []string{"client", "server"} {
		m.must(m.cni(call{Verb: "DEL", Conflist: conflist, ID: name, Netns: "/run/netns/" + name}))
		m.endSpace(name)
	}
	m.expectNothingLeft("web")
}
