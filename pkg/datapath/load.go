package datapath

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// Options say where the datapath is and how large to make it if it has to be made.
type Options struct {
	BPFFS string       // "" = DefaultBPFFS
	Sizes Sizes        // used only by who makes the maps
	Log   *slog.Logger // nil = silent
}

// Datapath is the open set of maps and programs below one pin directory.
type Datapath struct {
	dir   string
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	mem   mappings
	sweep sweepCursor

	current bool // the programs were loaded from this binary just now
}

// Dir returns the pin directory of this layout below bpffs.
func Dir(bpffs string) string {
	return filepath.Join(bpffs, "v"+strconv.Itoa(LayoutVersion))
}

// LinkDir returns where links are pinned below bpffs.
func LinkDir(bpffs string) string {
	return filepath.Join(Dir(bpffs), "links")
}

// Open opens what is pinned and makes nothing. It returns ErrNotLoaded where there is nothing, and
// *LayoutError where there is only another layout.
func Open(bpffs string) (*Datapath, error) {
	if bpffs == "" {
		bpffs = DefaultBPFFS
	}
	found, err := layouts(bpffs)
	if err != nil {
		return nil, err
	}
	if slices.Contains(found, LayoutVersion) {
		return openPins(Dir(bpffs))
	}
	if len(found) > 0 {
		return nil, &LayoutError{Dir: bpffs, Found: found[len(found)-1], Want: LayoutVersion}
	}
	return nil, fmt.Errorf("%w below %s", ErrNotLoaded, bpffs)
}

// Load opens what is pinned, and makes and pins it where there is nothing: the first process
// after a boot does, whoever it is. Others wait for it at a lock. It mounts a bpffs if none is there.
func Load(o Options) (*Datapath, error) {
	if o.BPFFS == "" {
		o.BPFFS = DefaultBPFFS
	}
	if err := ensureBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	unlock, err := lockDir(o.BPFFS)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := Open(o.BPFFS)
	if !errors.Is(err, ErrNotLoaded) {
		return d, err
	}
	if err := create(o.BPFFS, o.Sizes.WithDefaults()); err != nil {
		return nil, err
	}
	if o.Log != nil {
		o.Log.Info("loaded the datapath", "dir", Dir(o.BPFFS))
	}
	if d, err = openPins(Dir(o.BPFFS)); err == nil {
		d.current = true
	}
	return d, err
}

// layouts returns the versions pinned below bpffs, in order.
func layouts(bpffs string) ([]int, error) {
	entries, err := os.ReadDir(bpffs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var found []int
	for _, e := range entries {
		if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), "v")); err == nil && strings.HasPrefix(e.Name(), "v") {
			found = append(found, n)
		}
	}
	slices.Sort(found)
	return found, nil
}

// lockDir serialises loading below bpffs between processes.
func lockDir(bpffs string) (func(), error) {
	f, err := os.Open(bpffs)
	if err != nil {
		return nil, fmt.Errorf("lock pins: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", bpffs, err)
	}
	return func() { f.Close() }, nil
}

// mapSizes returns max_entries by map name.
func mapSizes(s Sizes) map[string]uint32 {
	opening, closing := s.MaxConntrack/4, max(s.MaxConntrack/16, 1024)
	opening = max(opening, 64)
	pairs := s.MaxConntrack + opening + closing + pairSlack
	return map[string]uint32{
		bpf.MapsMapFrontends:     2 * (s.MaxServices + s.MaxBackends),
		bpf.MapsMapServices:      s.MaxServices + 1,
		bpf.MapsMapGroups:        s.MaxGroups() + 1,
		bpf.MapsMapBackends:      s.MaxBackends + 1,
		bpf.MapsMapBackendStats:  s.MaxBackends + 1,
		bpf.MapsMapArena:         (s.TableSlots + arenaLine - 1) / arenaLine,
		bpf.MapsMapCtPairs:       pairs,
		bpf.MapsMapCtIndex:       1 << bits.Len32(pairs+pairs/4-1),
		bpf.MapsMapCtFree:        pairs,
		bpf.MapsMapCtOpening:     opening,
		bpf.MapsMapCtClosing:     closing,
		bpf.MapsMapCtTimes:       pairs,
		bpf.MapsMapCtShared:      1,
		bpf.MapsMapDsrVips:       pairs,
		bpf.MapsMapAffinities:    affinityEntries,
		bpf.MapsMapFragments:     fragmentEntries,
		bpf.MapsMapHeldFragments: uint32(heldFragments),
		bpf.MapsMapHeldRing:      1,
		bpf.MapsMapFirstFragment: 1,
		bpf.MapsMapAllow:         s.MaxServices,
		bpf.MapsMapEndpoints:     endpointEntries,
		bpf.MapsMapNodes:         MaxNodes,
		bpf.MapsMapVteps:         MaxNodes,
		bpf.MapsMapSubnets:       subnetEntries,
		bpf.MapsMapUplinks:       uplinkEntries,
		bpf.MapsMapVlans:         MaxVLANs,
		bpf.MapsMapVlanZones:     MaxVLANs,
		bpf.MapsMapVlanSources:   sourceEntries,
		bpf.MapsMapNeighbours:    s.MaxBackends,
		bpf.MapsMapSettings:      1,
		bpf.MapsMapRejectBuckets: 1,
		bpf.MapsMapDrops:         uint32(bpf.MapsDropReasonDROP_REASONS),
	}
}

const (
	// pairSlack is for flows that are being made while every room is full.
	pairSlack       = 256
	affinityEntries = 65536
	// groupsPerService is what services have on average, at most: target ports times families.
	groupsPerService = 4
	fragmentEntries  = 16384
	heldFragments    = 256    // HELD_FRAGMENTS of bpf/lib/types.h
	endpointEntries  = 131072 // three for a container with one address
	subnetEntries    = 16 * MaxNodes
	uplinkEntries    = 64
	sourceEntries    = 4 * MaxVLANs
)

// create makes all maps and programs aside and renames them into place, so that a crash leaves
// nothing that could be opened.
func create(bpffs string, s Sizes) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise the memory lock limit: %w", err)
	}
	aside := filepath.Join(bpffs, "new-v"+strconv.Itoa(LayoutVersion))
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("remove unfinished pins: %w", err)
	}
	for _, sub := range []string{"maps", "progs", "links"} {
		if err := os.MkdirAll(filepath.Join(aside, sub), 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	d := &Datapath{dir: aside}
	defer d.Close()
	var err error
	if d.maps, err = createMaps(s); err != nil {
		return err
	}
	if err := d.initialise(s); err != nil {
		return err
	}
	if d.progs, err = loadPrograms(d.maps); err != nil {
		return err
	}
	if err := d.pinAll(); err != nil {
		return err
	}
	if err := os.Rename(aside, Dir(bpffs)); err != nil {
		return fmt.Errorf("publish pins: %w", err)
	}
	return nil
}

func createMaps(s Sizes) (map[string]*ebpf.Map, error) {
	spec, err := bpf.LoadMaps()
	if err != nil {
		return nil, fmt.Errorf("read the map layout: %w", err)
	}
	made := map[string]*ebpf.Map{}
	for name, entries := range mapSizes(s) {
		ms := spec.Maps[name]
		ms.MaxEntries = entries
		m, err := ebpf.NewMap(ms)
		if err != nil {
			closeAll(made)
			return nil, fmt.Errorf("create map %s with %d entries: %w", name, entries, err)
		}
		made[name] = m
	}
	return made, nil
}

// initialise writes what programs rely on before anybody configures anything: the index keys, the
// node-wide timeouts and backend 0, which direct flows point to.
func (d *Datapath) initialise(Sizes) error {
	var settings bpf.MapsNodeSettings
	var random [8 * len(settings.Keys)]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("make index keys: %w", err)
	}
	for i := range settings.Keys {
		settings.Keys[i] = binary.NativeEndian.Uint64(random[8*i:]) | 1
	}
	settings.Flags = uint32(bpf.MapsSettingFlagSETTING_ANTI_SPOOF)
	settings.Second = ticks(time.Second)
	if err := d.maps[bpf.MapsMapSettings].Put(uint32(0), &settings); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := d.PutService(0, Service{Timeouts: DefaultTimeouts}); err != nil {
		return err
	}
	live := bpf.MapsBackend{Flags: uint8(bpf.MapsBackendFlagBACKEND_LIVE)}
	if err := d.maps[bpf.MapsMapBackends].Put(uint32(0), &live); err != nil {
		return fmt.Errorf("write backend 0: %w", err)
	}
	return nil
}

func (d *Datapath) pinAll() error {
	for name, m := range d.maps {
		if err := m.Pin(filepath.Join(d.dir, "maps", name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, p := range d.progs {
		if err := p.Pin(filepath.Join(d.dir, "progs", name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// openPins opens every map and program below dir and refuses records of another shape.
func openPins(dir string) (*Datapath, error) {
	d := &Datapath{dir: dir, maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{}}
	for name := range mapSizes(Sizes{}.WithDefaults()) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		d.maps[name] = m
		if err := checkShape(name, m); err != nil {
			d.Close()
			return nil, err
		}
	}
	for name := range programs {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, "progs", name), nil)
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("open program %s: %w", name, err)
		}
		d.progs[name] = p
	}
	return d, nil
}

// Close releases the open files. Pins and what runs stay.
func (d *Datapath) Close() error {
	err := d.mem.close()
	closeAll(d.maps)
	closeAll(d.progs)
	return err
}

func closeAll[T interface{ Close() error }](of map[string]T) {
	for c := range maps.Values(of) {
		c.Close()
	}
}

// Dir returns the pin directory.
func (d *Datapath) Dir() string { return d.dir }

// Program returns a loaded program by name, or nil.
func (d *Datapath) Program(name string) *ebpf.Program { return d.progs[name] }

// Sizes returns what the pinned maps were made for.
func (d *Datapath) Sizes() Sizes {
	n := func(name string) uint32 { return d.maps[name].MaxEntries() }
	return Sizes{
		MaxServices:  n(bpf.MapsMapServices) - 1,
		MaxBackends:  n(bpf.MapsMapBackends) - 1,
		TableSlots:   n(bpf.MapsMapArena) * arenaLine,
		MaxConntrack: n(bpf.MapsMapCtPairs) - n(bpf.MapsMapCtOpening) - n(bpf.MapsMapCtClosing) - pairSlack,
	}
}
