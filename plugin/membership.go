package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// membership is what a container says about the services it belongs to.
type membership struct {
	services []string // of the first channel that names any
	source   string
	names    []string // joins services of these names; only without services
	weight   *int
	port     uint16
	label    string // what people call the container
}

// channel is a place where a user writes keys of ours.
type channel struct {
	source, what           string
	services, weight, port string // its keys
	prefix                 string // keys that begin so are ours, so an unknown one is a mistake
	values                 map[string]string
}

// isLabel reports whether s can be a service's name: a DNS label. By hand, for compiling an
// expression would cost every start of the plugin a third of a millisecond.
func isLabel(s string) bool {
	for i := range len(s) {
		inner := i > 0 && i < len(s)-1
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && inner) {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63
}

// membership reads the channels that reach a plugin, strongest first: CNI_ARGS, pod annotations,
// the conflist's "services", and names. Weight and port come from the first of CNI_ARGS and
// annotations that has them, but what annotations say does not count once CNI_ARGS named services.
func (c *netConf) membership(containerID, envArgs string) (membership, error) {
	args := cniArgs(envArgs)
	m := membership{label: args["K8S_POD_NAME"]}
	for _, ch := range []channel{
		{registry.SourceArgs, "CNI_ARGS", "TCLB_SERVICES", "TCLB_WEIGHT", "TCLB_PORT", "TCLB_", args},
		{registry.SourceAnnotations, "pod annotations", "tclb.services", "tclb.weight", "tclb.port", "tclb.", c.RuntimeConfig.Annotations},
	} {
		if err := ch.check(); err != nil {
			return m, err
		}
		if m.services != nil {
			continue
		}
		if err := ch.read(&m); err != nil {
			return m, err
		}
	}
	if m.services == nil {
		services, err := serviceNames(c.Services)
		if err != nil {
			return m, failure(types.ErrInvalidNetworkConfig, nil, "conflist key \"services\": %s", err)
		}
		if services != nil {
			m.services, m.source = services, registry.SourceConflist
		}
	}
	if m.services == nil && (c.JoinByName == nil || *c.JoinByName) {
		m.names = c.names(containerID, args)
	}
	return m, nil
}

func (ch channel) check() error {
	for k := range ch.values {
		if strings.HasPrefix(k, ch.prefix) && k != ch.services && k != ch.weight && k != ch.port {
			return failure(types.ErrInvalidNetworkConfig, nil, "%s: unknown key %s: want %s, %s or %s",
				ch.what, k, ch.services, ch.weight, ch.port)
		}
	}
	return nil
}

// read takes from ch what m does not have yet.
func (ch channel) read(m *membership) error {
	invalid := func(key string, err error) error {
		return failure(types.ErrInvalidNetworkConfig, nil, "%s: %s=%s: %s", ch.what, key, ch.values[key], err)
	}
	services, err := serviceNames(strings.Split(ch.values[ch.services], ","))
	if err != nil {
		return invalid(ch.services, err)
	}
	if services != nil {
		m.services, m.source = services, ch.source
	}
	if v := strings.TrimSpace(ch.values[ch.weight]); v != "" && m.weight == nil {
		n, err := number(v, 0, lb.MaxWeight)
		if err != nil {
			return invalid(ch.weight, err)
		}
		m.weight = &n
	}
	if v := strings.TrimSpace(ch.values[ch.port]); v != "" && m.port == 0 {
		n, err := number(v, 1, 65535)
		if err != nil {
			return invalid(ch.port, err)
		}
		m.port = uint16(n)
	}
	return nil
}

func number(s string, least, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("want a number from %d to %d", least, most)
	}
	return n, nil
}

// serviceNames trims and checks names; it returns nil if there are none. Each counts once.
func serviceNames(list []string) ([]string, error) {
	var out []string
	for _, s := range list {
		s = strings.TrimSpace(s)
		switch {
		case s == "" || slices.Contains(out, s):
		case !isLabel(s):
			return nil, fmt.Errorf("%q is no service name: use a-z, 0-9 and - inside, at most 63 characters", s)
		default:
			out = append(out, s)
		}
	}
	return out, nil
}

// names returns what the runtime calls the container where that could be a service's name:
// network aliases (podman), host name (nerdctl: the compose service), task group (Nomad).
func (c *netConf) names(containerID string, args map[string]string) []string {
	candidates := append(c.RuntimeConfig.Aliases.of(c.Name), args["NERDCTL_CNI_DHCP_HOSTNAME"], args["NOMAD_GROUP_NAME"])
	var out []string
	for _, n := range candidates {
		n = strings.ToLower(strings.TrimSpace(n))
		if isLabel(n) && !isShortID(n, containerID) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// isShortID recognises the short container id that runtimes add as an alias and take as the
// default host name. The id may have a namespace before it ("default-1802...").
func isShortID(name, containerID string) bool {
	if len(name) != 12 {
		return false
	}
	id := containerID[strings.LastIndex(containerID, "-")+1:]
	return strings.HasPrefix(id, name)
}
