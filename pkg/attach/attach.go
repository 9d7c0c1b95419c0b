// Package attach joins a BPF program to an interface and keeps it there under a pin.
//
// A pin is the name under which an attachment is found again by other processes: the plugin
// that made it, the one that removes it, the proxy that upgrades or reaps it. Three mechanisms
// stand behind one, in this order:
//
//   - a tcx link (kernel 6.6): runs before every clsact filter and beside other tcx programs;
//   - a clsact filter, where the kernel has no tcx;
//   - a filter on an `ingress` qdisc that somebody else made, where that forbids clsact. Such a
//     qdisc has no egress hook.
//
// The programs themselves return TCX_NEXT for what is not theirs, so that whoever is behind
// them runs too.
package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// ErrDead is returned by Update when the interface behind a pin is gone.
var ErrDead = errors.New("the interface is gone")

// ErrNoEgress is returned by Attach for the egress of an interface whose foreign `ingress`
// qdisc leaves room for an ingress program only.
var ErrNoEgress = errors.New("an ingress qdisc of another owner leaves no egress hook")

// ErrNotFound is returned for a pin that does not exist.
var ErrNotFound = errors.New("no such attachment")

// The mechanisms, in the order in which Attach tries them: Link.Kind.
const (
	KindTCX     = "tcx"
	KindClsact  = "clsact"
	KindIngress = "ingress" // a foreign qdisc: no egress, so to_container is missing
)

// Direction is a hook of an interface, as seen from the interface.
type Direction uint8

// The hooks.
const (
	Ingress Direction = iota // what the interface receives
	Egress                   // what is sent through it
)

// String returns the word that tc uses for d.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Link describes an attachment.
type Link struct {
	PinPath   string
	Ifindex   uint32 // 0 once a tcx link's interface is gone
	Kind      string
	Direction Direction
	Alive     bool // the program runs on Ifindex
}

// Attach joins prog to the hook dir of the interface and pins the attachment at pin.
//
// It is idempotent: a live attachment at pin to the same hook gets prog without a gap;
// anything else of ours that pin stands for is detached first. ErrNoEgress says that only an
// ingress program can be attached to this interface.
func Attach(prog *ebpf.Program, ifindex int, dir Direction, pin string) (Link, error) {
	return AttachBy(prog, ifindex, dir, pin, KindTCX, KindClsact, KindIngress)
}

// AttachBehind is Attach for a second program of ours on one hook, which sees what the first one lets pass. Where
// links are possible they need no order, so there either may come first: programs that share a hook
// must want different packets.
func AttachBehind(prog *ebpf.Program, ifindex int, dir Direction, pin string, kinds ...string) (Link, error) {
	if len(kinds) == 0 {
		kinds = []string{KindTCX, KindClsact, KindIngress}
	}
	return attachTo(prog, ifindex, hook{dir, secondPref}, pin, kinds)
}

// AttachBy is Attach by the given mechanisms alone, tried in their order.
func AttachBy(prog *ebpf.Program, ifindex int, dir Direction, pin string, kinds ...string) (Link, error) {
	return attachTo(prog, ifindex, hook{dir, filterPref}, pin, kinds)
}

// hook is where a program is to run: filters are in order of preference.
type hook struct {
	dir  Direction
	pref uint16
}

func attachTo(prog *ebpf.Program, ifindex int, at hook, pin string, kinds []string) (Link, error) {
	switch old, err := Inspect(pin); {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return Link{}, err
	case old.Alive && int(old.Ifindex) == ifindex && old.Direction == at.dir && slices.Contains(kinds, old.Kind):
		return old, Update(pin, prog)
	default:
		if err := Detach(pin, 0); err != nil {
			return Link{}, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		return Link{}, fmt.Errorf("create pin directory: %w", err)
	}
	var errs []error
	for _, kind := range kinds {
		l, err := attachKind(prog, ifindex, at, pin, kind)
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, errTryNext) {
			break
		}
	}
	return Link{}, fmt.Errorf("attach to %s of interface %d: %w", at.dir, ifindex, errors.Join(errs...))
}

// errTryNext marks errors that say a mechanism does not exist here.
var errTryNext = errors.New("not available")

func attachKind(prog *ebpf.Program, ifindex int, at hook, pin, kind string) (Link, error) {
	switch kind {
	case KindTCX:
		return attachTCX(prog, ifindex, at.dir, pin)
	case KindClsact, KindIngress:
		return attachFilter(prog, ifindex, at, pin, kind)
	}
	return Link{}, fmt.Errorf("unknown kind of attachment %q", kind)
}

// Detach removes the attachment at pin; one that does not exist is no error.
//
// If there is no pin and ifindex is not 0, our filters on both hooks of that interface are
// removed: they run on after a bpffs and the pins in it are gone. Detach(pin, 0) touches what
// the pin leads to and nothing else.
func Detach(pin string, ifindex int) error {
	o, err := open(pin)
	switch {
	case errors.Is(err, ErrNotFound) && ifindex != 0:
		return removeFilters(ifindex)
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	defer o.close()
	if err := o.detach(); err != nil {
		return fmt.Errorf("detach %s: %w", pin, err)
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin: %w", err)
	}
	return nil
}

// Update replaces the program behind pin; every packet meets the old one or the new one.
// It returns ErrDead if the interface is gone, ErrNotFound without a pin.
func Update(pin string, prog *ebpf.Program) error {
	o, err := open(pin)
	if err != nil {
		return err
	}
	defer o.close()
	if err := o.update(prog); err != nil {
		return fmt.Errorf("update %s: %w", pin, err)
	}
	return nil
}

// Inspect tells what stands behind pin. It returns ErrNotFound without a pin.
func Inspect(pin string) (Link, error) {
	o, err := open(pin)
	if err != nil {
		return Link{}, err
	}
	defer o.close()
	l, err := o.inspect()
	if err != nil {
		return Link{}, fmt.Errorf("inspect %s: %w", pin, err)
	}
	l.PinPath = pin
	return l, nil
}
