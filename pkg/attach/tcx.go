package attach

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcxLink is a pinned link. The kernel detaches it when its interface goes, but the pin and
// the link stay, with ifindex 0.
type tcxLink struct{ link.Link }

func attachTCX(prog *ebpf.Program, ifindex int, dir Direction, path string) (Link, error) {
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: tcxType(dir)})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return Link{}, fmt.Errorf("tcx: %w: %w", errTryNext, err)
	}
	if err != nil {
		return Link{}, err
	}
	// Without a pin the link ends with its descriptor, so a crash before Pin leaves nothing.
	defer func() { _ = l.Close() }()
	if err := l.Pin(path); err != nil {
		return Link{}, fmt.Errorf("pin link: %w", err)
	}
	return Link{PinPath: path, Ifindex: uint32(ifindex), Kind: KindTCX, Direction: dir, Alive: true}, nil
}

func tcxType(dir Direction) ebpf.AttachType {
	if dir == Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

func (l tcxLink) inspect() (Link, error) {
	info, err := l.Info()
	if err != nil {
		return Link{}, err
	}
	tcx := info.TCX()
	if tcx == nil {
		return Link{}, fmt.Errorf("a link of type %d is no tcx link", info.Type)
	}
	out := Link{Ifindex: tcx.Ifindex, Kind: KindTCX, Alive: tcx.Ifindex != 0}
	if ebpf.AttachType(tcx.AttachType) == ebpf.AttachTCXEgress {
		out.Direction = Egress
	}
	return out, nil
}

func (l tcxLink) update(prog *ebpf.Program) error {
	err := l.Update(prog)
	if errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("%w: %w", ErrDead, err)
	}
	return err
}

// detach does not wait for other processes to close their descriptors of the link.
func (l tcxLink) detach() error {
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return err
	}
	return nil
}

func (l tcxLink) close() { _ = l.Close() }
