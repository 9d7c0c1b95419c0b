package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// A VIP is there if it answers a ping: people ask so first. (Cilium's do not: cilium#28458.)
func TestVIPAnswersPing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	outside := n.outside(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	client, plain := n.container(t, "client", n.bridged()), n.unattached(t, "plain")
	hostSource(t, n)
	spoofed := n.dropped(t, "spoofed")
	for _, from := range []*place{client.place, n.place, plain.place, outside} {
		for family, name := range families {
			for _, size := range []int{0, 56, 1472, 4000, 20000} { // the larger ones are fragments
				t.Run(fmt.Sprintf("%s/%s/%d", from.name, name, size), func(t *testing.T) {
					if err := from.ping(vip(10)[family], size); err != nil {
						t.Errorf("%s pings %s with %d bytes: %v", from.name, vip(10)[family], size, err)
					}
				})
			}
		}
	}
	for _, reason := range []string{"fragment", "malformed", "unroutable", "no-frontend"} {
		if count := n.dropped(t, reason); count != 0 {
			t.Errorf("%d packets were dropped as %s", count, reason)
		}
	}

	// Nobody gets an answer in another's name.
	for family, name := range families {
		t.Run("spoofed/"+name, func(t *testing.T) {
			answers := n.capture(t, "red0")
			echo := packet.ICMP{Type: [2]uint8{8, 128}[family]}
			client.send(t, built(t, packet.Spec{
				Src: netip.AddrPortFrom(plain.addr[family], 0), Dst: netip.AddrPortFrom(vip(10)[family], 0), ICMP: &echo,
			}))
			eventually(t, felt, "the spoofed request is counted", func() error {
				if got := n.dropped(t, "spoofed"); got != spoofed+family+1 {
					return fmt.Errorf("%d drops, were %d", got, spoofed)
				}
				return nil
			})
			if got := about(answers(), vip(10)[family]); len(got) > 0 {
				t.Errorf("a spoofed request makes packets: %v", got)
			}
		})
	}
}

// ping sends an echo request of size bytes and waits for its answer. The kernel checks the answer's
// checksum and that it comes from where it was asked.
func (p *place) ping(to netip.Addr, size int) error {
	p.sysctl("net/ipv4/ping_group_range", "0 0")
	family, proto, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(8), byte(0)
	var at unix.Sockaddr
	if to.Is4() {
		at = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		family, proto, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129
		at = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd := -1
	if err := p.try(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		return err
	}); err != nil {
		return fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout), unix.Connect(fd, at)); err != nil {
		return err
	}
	message := make([]byte, 8+size) // type, code, checksum, identifier (the kernel's), sequence
	message[0], message[7] = request, 1
	for i := range message[8:] {
		message[8+i] = byte(i)
	}
	if _, err := unix.Write(fd, message); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	answer := make([]byte, len(message)+1)
	n, err := unix.Read(fd, answer)
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	if n != len(message) || answer[0] != reply || !bytes.Equal(answer[6:n], message[6:]) {
		return fmt.Errorf("the answer is %d bytes of type %d, want the %d that were sent", n, answer[0], len(message))
	}
	return nil
}

// about are the packets of an address, told in a line each.
func about(frames [][]byte, a netip.Addr) (out []string) {
	for _, f := range frames {
		if s, err := packet.Parse(f); s.Src.Addr() == a || s.Dst.Addr() == a {
			out = append(out, strings.TrimSpace(fmt.Sprint(s, " ", err)))
		}
	}
	return out
}

// What no service is for ends on the node, and is refused, also where the node forwards nothing. With
// a default route the packets would run in circles between node and router. (As they do with others:
// cilium#14118.)
func TestUnknownPortOfAVIPIsRefusedOnTheNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.outside(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	n.container(t, "web", n.bridged(conf{"services": []string{"web"}})).serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 4)
	n.ip("route add default via " + external[v4].String())
	n.ip("-6 route add default via " + external[v6].String())
	n.sysctl("net/ipv4/ip_forward", "0") // upstream's bridge plugin had switched it on
	n.sysctl("net/ipv6/conf/all/forwarding", "0")
	uplinkFrames := n.capture(t, "up0")

	before := n.dropped(t, "no-frontend")
	packets := 0
	eachWay(t, func(t *testing.T, family int, proto string) {
		expectRefusal(t, client.place, proto, netip.AddrPortFrom(vip(10)[family], 81))
		packets++
	})
	if got := n.dropped(t, "no-frontend") - before; got != packets {
		t.Errorf("%d packets counted, %d were refused", got, packets)
	}
	for family := range families {
		client.sendUnknown(t, vip(10)[family])
		if err := client.ping(vip(10)[family], 56); err != nil {
			t.Errorf("ping: %v", err)
		}
	}
	frames := uplinkFrames()
	for family := range families {
		if left := about(frames, vip(10)[family]); len(left) > 0 {
			t.Errorf("packets left the node: %v", slices.Compact(left))
		}
	}
}

// sendUnknown sends a VIP packets that no service can be for: another transport, a lonely later
// fragment, a datagram with a length that is not true.
func (c *container) sendUnknown(t *testing.T, to netip.Addr) {
	t.Helper()
	whole := built(t, packet.Spec{
		Src: c.at(familyOf(to), 40000), Dst: netip.AddrPortFrom(to, servicePort), Protocol: lb.UDP, Payload: make([]byte, 3000),
	})
	pieces, err := packet.Fragments(whole, 1000, 7)
	if err != nil {
		t.Fatal(err)
	}
	sctp := bytes.Clone(built(t, packet.Spec{Src: c.at(familyOf(to), 40000), Dst: netip.AddrPortFrom(to, servicePort), Protocol: lb.UDP}))
	short := bytes.Clone(sctp)
	header := 14 + 20
	if to.Is6() {
		sctp[14+6], header = unix.IPPROTO_SCTP, 14+40
	} else {
		sctp[14+9] = unix.IPPROTO_SCTP // the raw socket writes the header's checksum
	}
	binary.BigEndian.PutUint16(short[header+4:], 4)
	c.send(t, sctp, short, pieces[1])
}
