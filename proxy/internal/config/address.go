package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// address accepts an IP address. IPv4 written as ::ffff:192.0.2.1 is the IPv4 address: the kernel
// sends it as such. Zones are refused, since they mean something on one host only.
func address(s scalar) (netip.Addr, error) {
	a, err := netip.ParseAddr(s.text)
	switch {
	case s.tag != "!!str" || err != nil:
		if p, err := netip.ParsePrefix(s.text); err == nil {
			return a, fmt.Errorf("%s is a prefix: want one address, without /%d", p, p.Bits())
		}
		return a, fmt.Errorf("%s is no IP address: want one like 192.0.2.1 or \"2001:db8::1\"", show(s.text))
	case a.Zone() != "":
		return a, fmt.Errorf("%s has a zone: write the address without %%%s", a, printable(a.Zone()))
	}
	return a.Unmap(), nil
}

// limitedBroadcast reaches every host of a link and is never one host's address.
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// unicast accepts an address that one host can have and others can reach. noun names its use.
func unicast(noun string) parser[netip.Addr] {
	return func(s scalar) (netip.Addr, error) {
		a, err := address(s)
		if err != nil {
			return a, fmt.Errorf("%s %w", noun, err)
		}
		if err := checkUnicast(a); err != nil {
			return a, fmt.Errorf("%s %s %w", noun, a, err)
		}
		return a, nil
	}
}

// local is unicast for what a proxy in userspace mode reaches too: addresses of this host alone. Whether there is one is
// not known where the value stands; Surroundings know.
func local(noun string) parser[netip.Addr] {
	return func(s scalar) (netip.Addr, error) {
		a, err := address(s)
		if err == nil && a.IsLoopback() {
			return a, nil
		}
		return unicast(noun)(s)
	}
}

// notLoopback is what is wrong with a loopback address.
const notLoopback = "is a loopback address, which containers cannot reach: want one outside 127.0.0.0/8 and ::1"

// checkUnicast says why an address is not one that a host can have and others can reach.
func checkUnicast(a netip.Addr) error {
	switch {
	case a.IsUnspecified():
		return errors.New("is the unspecified address: give a real one")
	case a.IsMulticast():
		return errors.New("is a multicast address: want one host's address")
	case a == limitedBroadcast:
		return errors.New("is the broadcast address: want one host's address")
	case a.IsLoopback():
		return errors.New(notLoopback)
	case a.Is6() && a.IsLinkLocalUnicast():
		return errors.New("is a link-local address, which needs an interface: want a global or unique local one")
	}
	return nil
}

// CheckBackend says what is wrong with an address of a backend or node that is in no file: those of files
// are checked by the same rule.
func CheckBackend(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" {
		return errors.New("is no plain address")
	}
	return checkUnicast(a.Unmap())
}

// CheckNodeName says what is wrong with a node's name that is in no file.
func CheckNodeName(name string) error {
	if len(name) > 253 || !hostName.MatchString(name) {
		return errors.New("is no host name: use letters, digits, - and . inside, at most 253 characters")
	}
	return nil
}

// prefix accepts an address prefix without host bits.
func prefix(s scalar) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s.text)
	if s.tag != "!!str" || err != nil {
		if a, err := netip.ParseAddr(s.text); err == nil && a.Zone() == "" {
			return p, fmt.Errorf("%s has no prefix length: write %s/%d for this address alone", a, a, a.BitLen())
		}
		return p, fmt.Errorf("%s is no prefix: want one like 192.0.2.0/24 or \"2001:db8::/64\"", show(s.text))
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%s is IPv4 in IPv6 notation: write the IPv4 prefix", p)
	}
	if m := p.Masked(); m != p {
		return p, fmt.Errorf("%s has bits set behind the prefix: did you mean %s?", p, m)
	}
	return p, nil
}

// hardwareAddress accepts the Ethernet address of one host.
var hardwareAddress = matching(func(s string) error {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return errors.New("is no Ethernet address: want one like 02:00:5e:10:00:01")
	}
	if mac[0]&1 != 0 {
		return errors.New("is a group address: want one host's")
	}
	if [6]byte(mac) == [6]byte{} {
		return errors.New("is no host's address: leave it empty to have it looked up")
	}
	return nil
})

// listenAddress accepts where a server listens: HOST:PORT with an address, localhost or no host at all.
var listenAddress = matching(func(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New(`is no HOST:PORT: want one like 127.0.0.1:9464 or "[::1]:9464"`)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return errors.New("has no IP address before the port: want one like 127.0.0.1:9464")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("has a wrong port: want 0 to 65535")
	}
	return nil
})

// endpointURL accepts where an etcd server listens: a URL, or HOST:PORT.
var endpointURL = matching(func(s string) error {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "" || u.Port() == "":
		return errors.New("is no server: want one like https://192.0.2.20:2379")
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("has an unknown scheme: want http or https")
	case !endpointPort(u.Port()):
		return errors.New("has a port out of range: want 1 to 65535")
	case u.User != nil:
		return errors.New("has a user in it: use etcd.user and etcd.passwordFile")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has more than a server in it: want one like https://192.0.2.20:2379")
	}
	return nil
})

func endpointPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// overlapping returns the first of the prefixes that shares an address with p.
func overlapping(p netip.Prefix, others []netip.Prefix) (netip.Prefix, bool) {
	for _, o := range others {
		if o.Overlaps(p) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}

// family returns "IPv4" or "IPv6".
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
