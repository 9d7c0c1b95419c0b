package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// Rules of a firewall on the node, for what is forwarded to the target port.
var iptables = [2]string{"iptables", "ip6tables"}

// firewall counts packets to the target port that the node forwards, and drops them if asked to.
func (n *node) firewall(drop bool) {
	n.t.Helper()
	verdict := "RETURN"
	if drop {
		verdict = "DROP"
	}
	for _, command := range iptables {
		for _, proto := range []string{"tcp", "udp"} {
			n.run(command, "-w", "-I", "FORWARD", "-p", proto, "--dport", fmt.Sprint(targetPort), "-j", verdict)
		}
	}
}

// filtered is how many packets of a protocol met the newest rule.
func (n *node) filtered(t *testing.T, family int, proto string) (packets int) {
	t.Helper()
	for _, line := range strings.Split(n.run(iptables[family], "-w", "-L", "FORWARD", "-v", "-x", "-n"), "\n") {
		if strings.Contains(line, proto+" dpt:") {
			if _, err := fmt.Sscan(line, &packets); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			return packets
		}
	}
	t.Fatal("the rule is gone")
	return 0
}

func TestHostStackKeepsTheFirewallOnThePath(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	server := n.container(t, "web", n.bridged(conf{"services": []string{"web"}}))
	server.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	n.firewall(false)

	ask := func(t *testing.T, family int, proto string) {
		t.Helper()
		a := client.mustAsk(t, proto, front(vip(10), family))
		if a.Server != server.name || a.Client.Addr() != client.addr[family] {
			t.Errorf("answer %+v", a)
		}
	}
	eachWay(t, func(t *testing.T, family int, proto string) {
		ask(t, family, proto)
		if got := n.filtered(t, family, proto); got != 0 {
			t.Errorf("%d packets met the firewall without hostStack", got)
		}
	})
	old := client.mustDial(t, "tcp", front(vip(10), v4), 0)
	client.mustHear(t, old)

	n.configureProxy("datapath: {hostStack: true, " + smallMaps + "}")
	if err := n.proxy.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, felt, "hostStack is on", func() error {
		client.mustAsk(t, "tcp", front(vip(10), v4))
		if st := list[statusRow](n, "status"); !st.HostStack || n.filtered(t, v4, "tcp") == 0 {
			return fmt.Errorf("status %+v, and the firewall sees nothing", st)
		}
		return nil
	})
	eachWay(t, func(t *testing.T, family int, proto string) {
		ask(t, family, proto)
		if got := n.filtered(t, family, proto); got == 0 {
			t.Error("no packet met the firewall")
		}
	})
	before := n.filtered(t, v4, "tcp")
	if client.mustHear(t, old); n.filtered(t, v4, "tcp") != before {
		t.Error("a flow of before changed its way")
	}

	n.firewall(true)
	eachWay(t, func(t *testing.T, family int, proto string) {
		if a, err := client.ask(proto, front(vip(10), family)); err == nil {
			t.Errorf("%+v got past the firewall", a)
		}
	})
}
