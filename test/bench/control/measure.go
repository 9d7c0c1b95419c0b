package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

const (
	perFile     = 100 // services in a file
	perService  = 10
	loadTimeout = 2 * time.Minute
	seeTimeout  = 10 * time.Second
)

func run(w io.Writer, binary string, services, changes int) (err error) {
	dir, err := os.MkdirTemp("", "tclb-control")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p := &process{binary: binary, dir: dir}
	defer func() { err = errors.Join(err, unix.Unmount(p.bpffs(), unix.MNT_DETACH)) }()
	if err := p.prepare(); err != nil {
		return err
	}
	// An empty node first: what the maps cost, and programs and maps are made before the clock runs.
	if err := p.start(0); err != nil {
		return err
	}
	empty := p.memory()
	if err := p.stop(); err != nil {
		return err
	}
	for file := range (services + perFile - 1) / perFile {
		if err := p.write(file, min(perFile, services-file*perFile), 0); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := p.start(services); err != nil {
		return err
	}
	took := time.Since(began)
	defer func() { err = errors.Join(err, p.stop()) }()
	full := p.memory()
	seen, err := p.change(min(perFile, services), changes)
	if err != nil {
		return err
	}
	slices.Sort(seen)
	fmt.Fprintf(w, "\n## Control plane, %d services of %d backends\n\n| what | value |\n|---|---|\n", services, perService)
	fmt.Fprintf(w, "| from the start of the process to all of it in the maps | %.2f s |\n", took.Seconds())
	fmt.Fprintf(w, "| memory of the proxy, empty node | %d MB |\n", empty>>20)
	fmt.Fprintf(w, "| memory of the proxy | %d MB |\n", full>>20)
	fmt.Fprintf(w, "| one backend changed in a file of %d services: in the maps after, p50 | %.1f ms |\n", min(perFile, services), seen[len(seen)/2].Seconds()*1000)
	_, err = fmt.Fprintf(w, "| the same, p90 | %.1f ms |\n", seen[len(seen)*9/10].Seconds()*1000)
	return err
}

// change replaces the first file, one backend's weight different each time, and returns how long after
// the rename the maps had it.
func (p *process) change(services, times int) ([]time.Duration, error) {
	d, err := datapath.Open(p.bpffs())
	if err != nil {
		return nil, err
	}
	defer d.Close()
	id, err := find(d, backend(0, 0))
	if err != nil {
		return nil, err
	}
	seen := make([]time.Duration, 0, times)
	for i := range times {
		weight := 100 + i%2 + 1
		if err := p.write(0, services, weight); err != nil {
			return nil, err
		}
		began := time.Now()
		for {
			record, err := d.Backend(id)
			if err != nil {
				return nil, err
			}
			if record.Weight == uint32(weight) {
				break
			}
			if time.Since(began) > seeTimeout {
				return nil, fmt.Errorf("weight %d of backend %d did not come within %s", weight, id, seeTimeout)
			}
			time.Sleep(50 * time.Microsecond)
		}
		seen = append(seen, time.Since(began))
		time.Sleep(100 * time.Millisecond) // one change at a time
	}
	return seen, nil
}

// find returns the id of the backend at an address.
func find(d *datapath.Datapath, address netip.Addr) (uint32, error) {
	all, err := d.Backends()
	if err != nil {
		return 0, err
	}
	for id, record := range all {
		if record.Address == address && record.Live {
			return id, nil
		}
	}
	return 0, fmt.Errorf("no backend %s in the maps", address)
}

// write replaces a services file the way editors and deployments do: a new one renamed into place.
// weight is the first backend's; 0 leaves the default.
func (p *process) write(file, services, weight int) error {
	var b strings.Builder
	b.WriteString("services:\n")
	for i := range services {
		n := file*perFile + i
		fmt.Fprintf(&b, "- name: svc-%d\n  vips: [10.%d.%d.%d]\n  ports: [{protocol: tcp, port: 80, targetPort: 8080}]\n  backends:\n", n, 96+n>>16, n>>8&255, n&255)
		for j := range perService {
			if n == 0 && j == 0 && weight != 0 {
				fmt.Fprintf(&b, "  - {address: %s, weight: %d}\n", backend(n, j), weight)
			} else {
				fmt.Fprintf(&b, "  - {address: %s}\n", backend(n, j))
			}
		}
	}
	path := filepath.Join(p.dir, "services.d", fmt.Sprintf("%04d.yaml", file))
	if err := os.WriteFile(path+"~", []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(path+"~", path)
}

// backend returns the address of a service's backend; none is used twice.
func backend(service, i int) netip.Addr {
	n := service*perService + i
	return netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)})
}
