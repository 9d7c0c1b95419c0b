package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// kept is a set of maps and programs that worlds use one after the other: the verifier takes most of the
// time that a world takes to make. Programs remember nothing but in maps, and each world finds these as
// they were when they were loaded.
type kept struct {
	dir   string // a bpffs
	maps  map[string]*ebpf.Map
	fresh map[string]any // contents of arrays after loading, by name
}

// shelf holds what no world uses just now.
var shelf struct {
	sync.Mutex
	free []*kept
}

func TestMain(m *testing.M) {
	status := m.Run()
	for _, k := range shelf.free {
		if err := k.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "datapath:", err)
			status = 1
		}
	}
	os.Exit(status)
}

// takeKept returns a set for the time of a test, loaded anew if all are in use.
func takeKept(t testing.TB, sizes datapath.Sizes) *kept {
	t.Helper()
	shelf.Lock()
	defer shelf.Unlock()
	var k *kept
	if n := len(shelf.free); n > 0 {
		k, shelf.free = shelf.free[n-1], shelf.free[:n-1]
	} else {
		var err error
		if k, err = load(sizes); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := k.restore(); err != nil {
			t.Error(errors.Join(err, k.remove()))
			return
		}
		shelf.Lock()
		defer shelf.Unlock()
		shelf.free = append(shelf.free, k)
	})
	return k
}

func load(sizes datapath.Sizes) (*kept, error) {
	dir, err := os.MkdirTemp("", "tclbd-")
	if err != nil {
		return nil, err
	}
	k := &kept{dir: dir + "/bpf", maps: map[string]*ebpf.Map{}, fresh: map[string]any{}}
	if err := k.fill(sizes); err != nil {
		return nil, errors.Join(err, k.remove())
	}
	return k, nil
}

func (k *kept) fill(sizes datapath.Sizes) error {
	d, err := datapath.Load(datapath.Options{BPFFS: k.dir, Sizes: sizes})
	if err != nil {
		return err
	}
	defer d.Close()
	pins, err := os.ReadDir(filepath.Join(d.Dir(), "maps"))
	if err != nil {
		return err
	}
	for _, pin := range pins {
		name := pin.Name()
		if k.maps[name], err = ebpf.LoadPinnedMap(filepath.Join(d.Dir(), "maps", name), nil); err != nil {
			return err
		}
		if k.fresh[name], err = contents(k.maps[name]); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

// contents reads an array; other maps are empty after loading.
func contents(m *ebpf.Map) (any, error) {
	switch m.Type() {
	case ebpf.Array:
		record := reflect.ArrayOf(int(m.ValueSize()), reflect.TypeFor[byte]())
		n := int(m.MaxEntries())
		values := reflect.MakeSlice(reflect.SliceOf(record), n, n).Interface()
		var cursor ebpf.MapBatchCursor
		_, err := m.BatchLookup(&cursor, make([]uint32, n), values, nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // that was all
			err = nil
		}
		return values, err
	case ebpf.PerCPUArray:
		values := make([][][]byte, m.MaxEntries())
		for i := range values {
			if err := m.Lookup(uint32(i), &values[i]); err != nil {
				return nil, err
			}
		}
		return values, nil
	}
	return nil, nil
}

// restore makes all maps what they were after loading.
func (k *kept) restore() error {
	for name, m := range k.maps {
		if err := restore(m, k.fresh[name]); err != nil {
			return fmt.Errorf("restore %s: %w", name, err)
		}
	}
	return nil
}

func restore(m *ebpf.Map, fresh any) error {
	switch m.Type() {
	case ebpf.Array:
		keys := make([]uint32, m.MaxEntries())
		for i := range keys {
			keys[i] = uint32(i)
		}
		_, err := m.BatchUpdate(keys, fresh, nil)
		return err
	case ebpf.PerCPUArray:
		for i, v := range fresh.([][][]byte) {
			if err := m.Put(uint32(i), v); err != nil {
				return err
			}
		}
		return nil
	case ebpf.Stack:
		value := make([]byte, m.ValueSize())
		for {
			if err := m.LookupAndDelete(nil, &value); errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			} else if err != nil {
				return err
			}
		}
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		return clearKeys(m)
	}
	return fmt.Errorf("a map of type %s, which tests do not know how to restore", m.Type())
}

func clearKeys(m *ebpf.Map) error {
	var keys [][]byte
	key, err := m.NextKeyBytes(nil)
	for ; err == nil && key != nil; key, err = m.NextKeyBytes(key) {
		keys = append(keys, key)
	}
	for _, key := range keys {
		err = errors.Join(err, m.Delete(key))
	}
	return err
}

func (k *kept) remove() error {
	for _, m := range k.maps {
		m.Close()
	}
	if err := unix.Unmount(k.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", k.dir, err)
	}
	return os.RemoveAll(filepath.Dir(k.dir))
}
