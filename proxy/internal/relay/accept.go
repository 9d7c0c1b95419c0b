package relay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	// A worker that finds a queue of clients takes more of them at a time, up to this many.
	acceptsAtOnce = 64
	// A connection goes to the thread with the fewest when its own has this many more, and a quarter.
	imbalance = 16
)

// tcpListener is a socket that all workers accept from. One socket, so that a port has one owner: several with
// SO_REUSEPORT would lose clients whenever one of them is closed, and would not notice another process.
type tcpListener struct {
	front lb.Frontend
	fd    int
}

func (r *Relay) listenTCP(front lb.Frontend) (listener, error) {
	fd, err := bind(front, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // accepted sockets inherit it
	if err := unix.Listen(fd, backlog); err != nil {
		closeSocket(fd)
		return nil, bindError(front, err)
	}
	l := &tcpListener{front, fd}
	errs := make(chan error, len(r.workers))
	r.everywhere(func(w *worker) {
		if errno := w.accept(l); errno != 0 {
			errs <- fmt.Errorf("watch the socket of %s: %w", front, errno)
		}
	})
	select {
	case err := <-errs:
		l.remove(r)
		return nil, err
	default:
		return l, nil
	}
}

// remove closes the socket when no worker uses it any more: its number may be another socket's then.
func (l *tcpListener) remove(r *Relay) {
	r.everywhere(func(w *worker) { w.acceptNoMore(l) })
	closeSocket(l.fd)
}

// acceptor is a worker's view of a listener.
type acceptor struct {
	w    *worker
	l    *tcpListener
	slot uint32
	take int // at a time
}

func (w *worker) accept(l *tcpListener) unix.Errno {
	a := &acceptor{w: w, l: l, take: 1}
	a.slot = w.add(a)
	w.acceptors = append(w.acceptors, a)
	if w.resume != 0 {
		return 0
	}
	return a.watch()
}

// watch waits for clients. Each of them wakes one worker.
func (a *acceptor) watch() unix.Errno {
	return a.w.watch(a.l.fd, a.slot, clientSide, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
}

func (w *worker) acceptNoMore(l *tcpListener) {
	i := slices.IndexFunc(w.acceptors, func(a *acceptor) bool { return a.l == l })
	if i < 0 {
		return
	}
	_ = w.control(unix.EPOLL_CTL_DEL, l.fd, w.acceptors[i].slot, clientSide, 0)
	w.drop(w.acceptors[i].slot)
	w.acceptors = slices.Delete(w.acceptors, i, i+1)
}

// ready accepts clients.
func (a *acceptor) ready(side, uint32) {
	var from sockaddr
	for range a.take {
		if !a.w.r.descriptors.take(connDescriptors) {
			a.w.pauseAccepting(unix.EMFILE)
			return
		}
		fd, errno := accept(a.l.fd, &from)
		if errno == 0 {
			a.w.place(a.l.front, fd, &from)
			continue
		}
		a.w.r.descriptors.give(connDescriptors)
		switch errno {
		case unix.EAGAIN:
			a.take = 1
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.w.pauseAccepting(errno)
			return
		}
		// Any other error is that client's, gone before it was accepted.
	}
	a.take = min(a.take*2, acceptsAtOnce)
}

func (*acceptor) sweep() {}
func (*acceptor) stop()  {}

// place serves a client here, or where far fewer are.
func (w *worker) place(front lb.Frontend, fd int, from *sockaddr) {
	w.r.connections.Add(1)
	client := from.decode()
	to := w
	if load := w.load.Load(); load > imbalance {
		for _, other := range w.r.workers {
			if n := other.load.Load(); n < to.load.Load() && load > n+n/4+imbalance {
				to = other
			}
		}
	}
	to.load.Add(1)
	if to == w {
		w.serve(front, fd, client)
		return
	}
	to.post(func() { to.serve(front, fd, client) })
}

// pauseAccepting leaves clients in the kernel's queue for a while: the socket would be ready all the time.
func (w *worker) pauseAccepting(errno unix.Errno) {
	w.r.complain(complainDescriptors, "cannot accept connections: this node has no descriptor or memory left for them; raise the limit of open files",
		"connections", w.r.connections.Load(), "err", errno)
	if w.resume == 0 {
		for _, a := range w.acceptors {
			_ = w.control(unix.EPOLL_CTL_DEL, a.l.fd, a.slot, clientSide, 0)
		}
	}
	w.resume = w.now + pauseInterval
}

func (w *worker) acceptAgain() {
	w.resume = 0
	for _, a := range w.acceptors {
		_ = a.watch()
	}
}
