package runtimes

import (
	"fmt"
	"os"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// expectNothingLeft waits until nothing of a container is on the machine: files, pins, map entries,
// interfaces, backends.
func (m *machine) expectNothingLeft(services ...string) {
	m.Helper()
	for _, s := range services {
		m.waitBackends(s, 0)
	}
	m.eventually("nothing is left of containers", func() error {
		left, err := m.remains()
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(left, ", "))
		}
		return err
	})
}

func (m *machine) remains() ([]string, error) {
	var left []string
	for _, dir := range []string{"/run/tclb/endpoints", "/run/tclb/locks", datapath.LinkDir(datapath.DefaultBPFFS), "/var/lib/cni/results"} {
		files, err := os.ReadDir(m.path(dir))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, f := range files {
			if f.Name() != "host" { // tclb0's link
				left = append(left, dir+"/"+f.Name())
			}
		}
	}
	links, err := m.try("ip", "-o", "link", "show", "type", "veth")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(links) {
		if !strings.Contains(line, ": tclb") { // the host path's own pair
			left = append(left, strings.TrimSpace(line))
		}
	}
	d, err := datapath.Open(m.path(datapath.DefaultBPFFS))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	endpoints, err := d.Endpoints()
	for k := range endpoints {
		left = append(left, "endpoint "+k.Address.String())
	}
	return left, err
}
