package datapath

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"

	"github.com/tc-loadbalancer/tclb/bpf"
)

// Names of the programs, as pinned.
const (
	FromContainer = bpf.FromContainerProgFromContainer
	ToContainer   = bpf.ToContainerProgToContainer
	FromHost      = bpf.FromHostProgFromHost
	FromOverlay   = bpf.FromOverlayProgFromOverlay
	FromUplink    = bpf.FromUplinkProgFromUplink
	ToUplink      = bpf.ToUplinkProgToUplink
	FromTrunk     = bpf.FromTrunkProgFromTrunk
	ctSweep       = bpf.CtSweepProgCtSweep
)

// programs lists the objects to load, one program each.
var programs = map[string]func() (*ebpf.CollectionSpec, error){
	FromContainer: bpf.LoadFromContainer,
	ToContainer:   bpf.LoadToContainer,
	FromHost:      bpf.LoadFromHost,
	FromOverlay:   bpf.LoadFromOverlay,
	FromUplink:    bpf.LoadFromUplink,
	ToUplink:      bpf.LoadToUplink,
	FromTrunk:     bpf.LoadFromTrunk,
	ctSweep:       bpf.LoadCtSweep,
}

// loadConfig is struct load_config of bpf/lib/config.h.
type loadConfig struct {
	Pairs, Established, Opening, Closing, BucketMask uint32
}

// loadPrograms loads every program on the given maps.
func loadPrograms(on map[string]*ebpf.Map) (map[string]*ebpf.Program, error) {
	pairs, opening, closing := on[bpf.MapsMapCtPairs].MaxEntries(), on[bpf.MapsMapCtOpening].MaxEntries(), on[bpf.MapsMapCtClosing].MaxEntries()
	config := loadConfig{
		Pairs: pairs, Opening: opening, Closing: closing,
		Established: pairs - opening - closing - pairSlack,
		BucketMask:  on[bpf.MapsMapCtIndex].MaxEntries() - 1,
	}
	loaded := map[string]*ebpf.Program{}
	var mu sync.Mutex // guards loaded
	var loading errgroup.Group
	for name, load := range programs {
		loading.Go(func() error { // the verifier takes a while for each
			p, err := loadProgram(name, load, config, on)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			loaded[name] = p
			return nil
		})
	}
	if err := loading.Wait(); err != nil {
		closeAll(loaded)
		return nil, err
	}
	return loaded, nil
}

func loadProgram(name string, load func() (*ebpf.CollectionSpec, error), config loadConfig, on map[string]*ebpf.Map) (*ebpf.Program, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", name, err)
	}
	if err := spec.Variables["config"].Set(config); err != nil {
		return nil, fmt.Errorf("configure program %s: %w", name, err)
	}
	replace := map[string]*ebpf.Map{}
	for m := range spec.Maps {
		if on[m] != nil {
			spec.Maps[m].MaxEntries = on[m].MaxEntries()
			replace[m] = on[m]
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		var rejected *ebpf.VerifierError
		if errors.As(err, &rejected) {
			return nil, fmt.Errorf("load program %s: %w\n%s", name, err, strings.Join(rejected.Log, "\n"))
		}
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}
