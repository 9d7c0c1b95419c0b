// Package reconcile makes the datapath's maps equal to the desired state.
//
// It never patches: a pass computes what each changed service needs and writes what differs from
// the maps. Ids are recovered from the maps by address, so that a proxy that restarts writes
// nothing that is right, and no flow notices.
//
// Writes go in an order in which a packet never meets a reference to something that is not there:
// backends, then tables, then the frontends that point to them. Deletes go the other way. Tables are
// never changed in place: a new region is written, the frontends are swapped, and the old region
// rests for a while before it is used again.
//
// One bad service does not stop the others. What fails is retained as an error of its service and
// tried again later; what fits works.
package reconcile

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Maps is what the reconciler needs of the datapath.
type Maps interface {
	Sizes() datapath.Sizes
	Frontends() (map[lb.Frontend]datapath.Frontend, error)
	PutFrontends(map[lb.Frontend]datapath.Frontend) error
	DeleteFrontends([]lb.Frontend) error
	Service(id uint32) (datapath.Service, error)
	PutService(id uint32, s datapath.Service) error
	Backends() (map[uint32]datapath.Backend, error)
	PutBackends(ids []uint32, backends []datapath.Backend) error
	ResetBackendStat(id, group uint32)
	MoveLoad(id, from, to uint32)
	ResetGroup(id uint32, cursor uint64)
	WriteRegion(r datapath.Region, values []uint32) error
	ReadRegion(r datapath.Region) ([]uint32, error)
	Allows() (map[datapath.AllowKey]struct{}, error)
	PutAllow(datapath.AllowKey) error
	DeleteAllow(datapath.AllowKey) error
}

// Arena gives out regions; *datapath.Arena is one.
type Arena interface {
	Reserve(datapath.Region) error
	Alloc(n uint32) (datapath.Region, error)
	Free(datapath.Region)
}

// Times of the reconciler.
const (
	// Grace is how long what packets may still refer to is left alone: table regions (given to the
	// arena) and backend ids.
	Grace = 2 * time.Second

	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Options are what a reconciler works with.
type Options struct {
	Maps     Maps
	Arena    Arena
	TableDir string // where base tables are kept
	Shared   Shared // and whom they are shared with; nil = nobody
	Now      func() time.Time
	Log      *slog.Logger
}

// Reconciler keeps the maps equal to snapshots. Its methods are safe for concurrent use; passes take
// turns.
type Reconciler struct {
	maps   Maps
	arena  Arena
	bases  *baseStore
	shared Shared
	now    func() time.Time
	log    *slog.Logger

	mu        sync.Mutex // guards all below
	recovered bool
	pruned    bool // the first complete pass is done
	snapshot  *state.Snapshot
	timeouts  lb.Timeouts    // node-wide, as in the maps
	outside   *state.Outside // that services were planned with

	// What is in the maps, as far as this process knows.
	frontends map[lb.Frontend]datapath.Frontend
	backends  []datapath.Backend // by id
	allows    map[datapath.AllowKey]struct{}

	services   map[string]*service
	names      map[uint32]string // by service id
	direct     map[lb.Frontend]int
	serviceIDs *idPool
	backendIDs *idPool
	groupIDs   *idPool
	found      *remains // what the maps held at start, until the first pass is done

	general   map[string]problem // by what failed: errors that concern no single service
	leftover  cleanup            // what could not be taken away, and what nobody knows
	unclaimed bool               // a service could not be read, so that what it has looks like nobody's
	suspect   map[uint32]bool    // backends that somebody, probably the plugin, marked gone
	builders  []*builder         // one for each processor
	stats     Stats
}

// New returns a reconciler. Nothing is read or written yet.
func New(o Options) *Reconciler {
	sizes := o.Maps.Sizes().WithDefaults()
	if o.Shared == nil {
		o.Shared = alone{}
	}
	return &Reconciler{
		shared:     o.Shared,
		maps:       o.Maps,
		arena:      o.Arena,
		bases:      newBaseStore(o.TableDir),
		now:        o.Now,
		log:        o.Log,
		services:   make(map[string]*service),
		names:      make(map[uint32]string),
		direct:     make(map[lb.Frontend]int),
		serviceIDs: newIDPool(sizes.MaxServices),
		backendIDs: newIDPool(sizes.MaxBackends),
		groupIDs:   newIDPool(sizes.MaxGroups()),
		general:    make(map[string]problem),
		suspect:    make(map[uint32]bool),
	}
}

// service is what the reconciler knows of a service.
type service struct {
	name    string
	id      uint32
	record  datapath.Service // as in the maps
	applied *state.Service   // what the maps hold, as far as err does not say otherwise
	dirty   bool             // to be planned whether or not it changed
	rewrite bool             // somebody else changed the record

	ids    []uint32      // backend ids, all of them live
	keys   []lb.Frontend // its VIPs' keys
	direct []lb.Frontend // its backends' own addresses
	allow  []datapath.AllowKey
	tables [2]tables // by family
	groups map[groupKey]uint32

	regions  []datapath.Region // all that it holds; those of tables, and others while frontends name them
	retiring []uint32          // ids that seat lists in the maps may still name
	moved    uint64

	err      error
	since    time.Time
	attempts int
	retryAt  time.Time
}

// tables are the regions of one family of a service.
type tables struct {
	slots   held
	shape   shape
	members []held // by port, in the order of the service's ports; equal lists share a region
}

// shape is how the datapath is to read the slots.
type shape struct {
	listed bool   // in order, as a list
	head   uint32 // those in front that list who serves
	weight uint32 // sum over who is in the table
	slots  uint32
	narrow uint8
}

// put says so in a frontend's record.
func (s *shape) put(f *datapath.Frontend) {
	f.Listed, f.Head, f.Weight, f.Slots, f.Narrow = s.listed, s.head, s.weight, s.slots, s.narrow
}

func shapeOf(f *datapath.Frontend) shape {
	return shape{listed: f.Listed, head: f.Head, weight: f.Weight, slots: f.Slots, narrow: f.Narrow}
}

// held is a region and what it contains.
type held struct {
	region datapath.Region
	hash   uint64
}

// holds says whether a region is one of t.
func (t *tables) holds(r datapath.Region) bool {
	return t.slots.region == r || slices.ContainsFunc(t.members, func(m held) bool { return m.region == r })
}
