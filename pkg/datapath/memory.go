package datapath

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mappings are the array maps that are read and written through memory instead of system calls,
// each mapped when it is first used.
type mappings struct {
	mu sync.Mutex
	of map[*ebpf.Map][]byte
}

func (m *mappings) get(on *ebpf.Map) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.of[on]; b != nil {
		return b, nil
	}
	size := int(on.MaxEntries()) * int(stride(on.ValueSize()))
	page := unix.Getpagesize()
	size = (size + page - 1) / page * page
	b, err := unix.Mmap(on.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %v into memory: %w", on, err)
	}
	if m.of == nil {
		m.of = map[*ebpf.Map][]byte{}
	}
	m.of[on] = b
	return b, nil
}

func (m *mappings) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for on, b := range m.of {
		errs = append(errs, unix.Munmap(b))
		delete(m.of, on)
	}
	return errors.Join(errs...)
}

// stride is what one array element takes: the kernel pads values to 8 bytes.
func stride(valueSize uint32) uint32 { return (valueSize + 7) &^ 7 }

// each calls f with every element of an array map in memory, from the first-th on, until f returns
// false. What record says of concurrent writers holds here.
func each[T any](d *Datapath, name string, first, end uint32, f func(i uint32, v *T) bool) error {
	m := d.maps[name]
	b, err := d.mem.get(m)
	if err != nil {
		return err
	}
	step := int(stride(m.ValueSize()))
	for i := first; i < min(end, m.MaxEntries()); i++ {
		if !f(i, (*T)(unsafe.Pointer(&b[int(i)*step]))) {
			break
		}
	}
	return nil
}

// record points at element i of an array map in memory. The kernel and other processes write it
// at any time: read what changes by sync/atomic, and at most take snapshots of the rest.
func record[T any](d *Datapath, name string, i uint32) (*T, error) {
	m := d.maps[name]
	if i >= m.MaxEntries() {
		return nil, fmt.Errorf("map %s has no element %d: %w", name, i, ErrNotFound)
	}
	b, err := d.mem.get(m)
	if err != nil {
		return nil, err
	}
	return (*T)(unsafe.Pointer(&b[int(i)*int(stride(m.ValueSize()))])), nil
}
