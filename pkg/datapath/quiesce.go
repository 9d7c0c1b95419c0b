package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Quiesce returns when every run of a BPF program that was under way when it was called has ended. The
// kernel waits for that when a map inside a map is replaced; it takes some milliseconds.
func (d *Datapath) Quiesce() error {
	inner := &ebpf.MapSpec{Name: "tclb_quiesce", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	defer m.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "tclb_quiesce", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner,
	})
	if err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	defer outer.Close()
	if err := outer.Put(uint32(0), m); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}
