package attach

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A filter is ours if its name begins so.
const filterPrefix = "tclb-"

const (
	// Preference 1 runs first: the lowest number that can be asked for.
	filterPref = 1
	// secondPref is that of AttachBehind.
	secondPref = 2

	// The handle tells whether the qdisc is ours as well, and goes with our last filter.
	handleGuest = 0x7c1b0001 // the qdisc was there before us
	handleOwner = 0x7c1b0002 // Attach made the qdisc
)

// filterRecord is what is pinned for a filter, which itself has no pin: where to look for it.
type filterRecord struct{ m *ebpf.Map }

// filterPlace is the record's only entry.
type filterPlace struct {
	Ifindex   uint32
	Direction uint32
	Flags     uint32
}

// Flags of a place.
const (
	placeForeign = 1 // on a foreign ingress qdisc
	placeBehind  = 2 // of secondPref
)

func (p filterPlace) pref() uint16 {
	if p.Flags&placeBehind != 0 {
		return secondPref
	}
	return filterPref
}

func attachFilter(prog *ebpf.Program, ifindex int, at hook, path, kind string) (Link, error) {
	dev, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return Link{}, fmt.Errorf("find interface: %w", err)
	}
	made, err := prepareQdisc(dev, at.dir, kind)
	if err != nil {
		return Link{}, err
	}
	handle := uint32(handleGuest)
	if made {
		handle = handleOwner
	}
	place := filterPlace{Ifindex: uint32(ifindex), Direction: uint32(at.dir)}
	if kind == KindIngress {
		place.Flags |= placeForeign
	}
	if at.pref == secondPref {
		place.Flags |= placeBehind
	}
	// The record comes first: a crash may leave a record without its filter, never the reverse.
	err = pinRecord(place, path)
	if err == nil {
		err = putFilter(prog, place, handle, netlink.FilterAdd)
	}
	if err != nil {
		return Link{}, errors.Join(err, Detach(path, 0), dropQdisc(dev, handle))
	}
	return Link{PinPath: path, Ifindex: place.Ifindex, Kind: kind, Direction: at.dir, Alive: true}, nil
}

// prepareQdisc makes room for a filter. made reports that the qdisc is ours.
func prepareQdisc(dev netlink.Link, dir Direction, kind string) (made bool, err error) {
	qdiscs, err := netlinksafe.QdiscList(dev)
	if err != nil {
		return false, fmt.Errorf("list qdiscs: %w", err)
	}
	found := ""
	for _, q := range qdiscs {
		if t := q.Type(); t == KindClsact || t == KindIngress {
			found = t
		}
	}
	switch {
	case kind == KindIngress && found != KindIngress:
		return false, fmt.Errorf("ingress qdisc: %w: the interface has none", errTryNext)
	case kind == KindIngress && dir == Egress:
		return false, ErrNoEgress
	case kind == KindIngress:
		return false, nil
	case found == KindIngress:
		return false, fmt.Errorf("clsact: %w: an ingress qdisc is in its place", errTryNext)
	case found == KindClsact:
		ours, err := ourFilters(dev)
		if err != nil {
			return false, err
		}
		for _, f := range ours {
			made = made || f.Attrs().Handle == handleOwner
		}
		return made, nil
	}
	if err := netlink.QdiscAdd(clsact(dev)); err != nil {
		return false, fmt.Errorf("add clsact qdisc: %w", err)
	}
	return true, nil
}

func clsact(dev netlink.Link) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: dev.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

// dropQdisc removes the clsact qdisc that Attach made, once no filter is left on it.
func dropQdisc(dev netlink.Link, handle uint32) error {
	if handle != handleOwner {
		return nil
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if left, err := netlinksafe.FilterList(dev, parent); err != nil || len(left) != 0 {
			return err
		}
	}
	if err := netlink.QdiscDel(clsact(dev)); err != nil && !gone(err) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

func pinRecord(place filterPlace, path string) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "tclb_filter", Type: ebpf.Array, KeySize: 4, ValueSize: 12, MaxEntries: 1,
	})
	if err != nil {
		return fmt.Errorf("record filter: %w", err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Put(uint32(0), place); err != nil {
		return fmt.Errorf("record filter: %w", err)
	}
	if err := m.Pin(path); err != nil {
		return fmt.Errorf("pin filter record: %w", err)
	}
	return nil
}

func putFilter(prog *ebpf.Program, p filterPlace, handle uint32, put func(netlink.Filter) error) error {
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("read program's name: %w", err)
	}
	err = put(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(p.Ifindex), Parent: p.parent(), Handle: handle,
			Priority: p.pref(), Protocol: unix.ETH_P_ALL,
		},
		Fd:           prog.FD(),
		Name:         filterPrefix + info.Name,
		DirectAction: true,
	})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("filter: preference %d is taken by a filter of another kind, which would hide packets from ours; "+
			"put tclb-cni before that plugin or use a kernel with tcx (6.6): %w", p.pref(), err)
	}
	if err != nil {
		return fmt.Errorf("put filter: %w", err)
	}
	return nil
}

func (p filterPlace) parent() uint32 {
	switch {
	case p.Flags&placeForeign != 0:
		return netlink.MakeHandle(0xffff, 0)
	case Direction(p.Direction) == Egress:
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// find returns the interface and our filter on it; both are nil if they are gone.
func (r filterRecord) find() (p filterPlace, dev netlink.Link, f *netlink.BpfFilter, err error) {
	if err = r.m.Lookup(uint32(0), &p); err != nil {
		return p, nil, nil, fmt.Errorf("read filter record: %w", err)
	}
	dev, err = netlink.LinkByIndex(int(p.Ifindex))
	if gone(err) {
		return p, nil, nil, nil
	}
	if err != nil {
		return p, nil, nil, fmt.Errorf("find interface: %w", err)
	}
	filters, err := netlinksafe.FilterList(dev, p.parent())
	if err != nil {
		return p, nil, nil, fmt.Errorf("list filters: %w", err)
	}
	for _, l := range filters {
		if b, ok := l.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterPrefix) && b.Priority == p.pref() {
			return p, dev, b, nil
		}
	}
	return p, dev, nil, nil
}

func (r filterRecord) inspect() (Link, error) {
	p, _, f, err := r.find()
	if err != nil {
		return Link{}, err
	}
	l := Link{Ifindex: p.Ifindex, Kind: KindClsact, Direction: Direction(p.Direction), Alive: f != nil}
	if p.Flags&placeForeign != 0 {
		l.Kind = KindIngress
	}
	return l, nil
}

func (r filterRecord) update(prog *ebpf.Program) error {
	p, _, f, err := r.find()
	if err != nil {
		return err
	}
	if f == nil {
		return ErrDead
	}
	return putFilter(prog, p, f.Handle, netlink.FilterReplace)
}

func (r filterRecord) detach() error {
	_, dev, f, err := r.find()
	if err != nil || f == nil {
		return err
	}
	return removeFilter(dev, f)
}

func (r filterRecord) close() { _ = r.m.Close() }

// ourFilters returns our filters on every hook of dev.
func ourFilters(dev netlink.Link) ([]*netlink.BpfFilter, error) {
	var ours []*netlink.BpfFilter
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS, netlink.MakeHandle(0xffff, 0)} {
		filters, err := netlinksafe.FilterList(dev, parent)
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && strings.HasPrefix(b.Name, filterPrefix) {
				ours = append(ours, b)
			}
		}
	}
	return ours, nil
}

// removeFilters removes our filters from an interface whose pins are lost.
func removeFilters(ifindex int) error {
	dev, err := netlink.LinkByIndex(ifindex)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	ours, err := ourFilters(dev)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range ours {
		errs = append(errs, removeFilter(dev, f))
	}
	return errors.Join(errs...)
}

func removeFilter(dev netlink.Link, f *netlink.BpfFilter) error {
	if err := netlink.FilterDel(f); err != nil && !gone(err) {
		return fmt.Errorf("remove filter: %w", err)
	}
	return dropQdisc(dev, f.Handle)
}

// gone reports that err says: the interface, qdisc or filter does not exist.
func gone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}
