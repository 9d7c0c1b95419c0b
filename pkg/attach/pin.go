package attach

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// attachment is what a pin holds: a tcx link, or the record of a filter.
type attachment interface {
	inspect() (Link, error)
	update(prog *ebpf.Program) error
	detach() error // what is gone already is no error; the pin itself stays
	close()
}

func open(path string) (attachment, error) {
	obj, err := pin.Load(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open pin %s: %w", path, err)
	}
	switch o := obj.(type) {
	case link.Link:
		return tcxLink{o}, nil
	case *ebpf.Map:
		return filterRecord{o}, nil
	}
	_ = obj.Close()
	return nil, fmt.Errorf("open pin %s: it holds a %T, which is no attachment", path, obj)
}
