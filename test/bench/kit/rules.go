package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"strings"
)

// balanced is a service in the words of a rule set.
type balanced struct {
	vip, protocol, port string
	backends            []string // ADDRESS:PORT
}

// rules writes nftables rules that give the kernel the work that kube-proxy's give it: a verdict map
// of services, random choice, translation, a masquerade mark.
func rules(args []string, _ io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("rules", flag.ContinueOnError)
	others := flags.Int("others", 0, "services of three backends that nobody asks, beside the given ones")
	if err := flags.Parse(args); err != nil {
		return err
	}
	services := bystanders(*others)
	for _, arg := range flags.Args() {
		fields := strings.Fields(arg)
		if len(fields) < 4 {
			return fmt.Errorf("service %q: want VIP, protocol, port, backends", arg)
		}
		services = append(services, balanced{fields[0], fields[1], fields[2], fields[3:]})
	}
	w := bufio.NewWriter(out)
	fmt.Fprintln(w, preamble)
	for i, s := range services {
		fmt.Fprintf(w, "add chain ip tb svc-%d\n", i)
		for j := range s.backends {
			fmt.Fprintf(w, "add chain ip tb ep-%d-%d\n", i, j)
		}
	}
	for i, s := range services {
		s.write(w, i)
	}
	return w.Flush()
}

const preamble = `add table ip tb
add chain ip tb mark-for-masquerade
add rule ip tb mark-for-masquerade mark set mark or 0x4000
add chain ip tb masquerading
add rule ip tb masquerading mark and 0x4000 == 0 return
add rule ip tb masquerading mark set mark xor 0x4000
add rule ip tb masquerading masquerade fully-random
add map ip tb service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add chain ip tb services
add rule ip tb services ip daddr . meta l4proto . th dport vmap @service-ips
add chain ip tb nat-prerouting { type nat hook prerouting priority -100 ; }
add rule ip tb nat-prerouting jump services
add chain ip tb nat-output { type nat hook output priority -100 ; }
add rule ip tb nat-output jump services
add chain ip tb nat-postrouting { type nat hook postrouting priority 100 ; }
add rule ip tb nat-postrouting jump masquerading
add map ip tb no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }
add chain ip tb endpoints-check
add rule ip tb endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add chain ip tb filter-forward { type filter hook forward priority -110 ; }
add rule ip tb filter-forward ct state new jump endpoints-check
add chain ip tb filter-prerouting { type filter hook prerouting priority -110 ; }
add rule ip tb filter-prerouting ct state new jump endpoints-check`

func (s balanced) write(w io.Writer, n int) {
	verdicts := make([]string, len(s.backends))
	for i, backend := range s.backends {
		address, _, _ := strings.Cut(backend, ":")
		fmt.Fprintf(w, "add rule ip tb ep-%d-%d ip saddr %s jump mark-for-masquerade\n", n, i, address)
		fmt.Fprintf(w, "add rule ip tb ep-%d-%d meta l4proto %s dnat to %s\n", n, i, s.protocol, backend)
		verdicts[i] = fmt.Sprintf("%d : goto ep-%d-%d", i, n, i)
	}
	fmt.Fprintf(w, "add rule ip tb svc-%d numgen random mod %d vmap { %s }\n", n, len(s.backends), strings.Join(verdicts, ", "))
	fmt.Fprintf(w, "add element ip tb service-ips { %s . %s . %s : goto svc-%d }\n", s.vip, s.protocol, s.port, n)
}

func bystanders(n int) []balanced {
	all := make([]balanced, n)
	for i := range all {
		all[i] = balanced{vip: fmt.Sprintf("10.100.%d.%d", i>>8, i&255), protocol: "tcp", port: "80"}
		for j := range 3 {
			all[i].backends = append(all[i].backends, fmt.Sprintf("10.%d.%d.%d:8080", 120+j, i>>8, i&255))
		}
	}
	return all
}
