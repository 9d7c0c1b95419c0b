package relay

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	// A worker that finds clients queued each time takes more of them at once: one more after eight times.
	// To ask for one more than there are costs a call, so clients who come one by one are taken so.
	acceptsAtOnce = 64
	timesLucky    = 8
	// A connection is handed to the worker with the fewest when its own has so many more.
	imbalance = 2
)

// acceptor is a TCP frontend's socket. One worker accepts, and hands on what is too much for it: woken for the
// same client, the others would come for nothing every other time. There is one socket, so that a port has
// one owner: several with SO_REUSEPORT would not notice another process.
type acceptor struct {
	w     *worker
	front lb.Frontend
	fd    int
	slot  uint32
	lucky int // times in a row that nobody was asked for in vain
}

func (r *Relay) listenTCP(front lb.Frontend) (listener, error) {
	fd, err := r.bind(front, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	// Accepted sockets inherit these.
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	if err := unix.Listen(fd, backlog); err != nil {
		closeSocket(fd)
		return nil, bindError(front, err)
	}
	a := &acceptor{w: r.next(), front: front, fd: fd}
	var errno unix.Errno
	a.w.do(func() { errno = a.begin() })
	if errno != 0 {
		closeSocket(fd)
		return nil, fmt.Errorf("watch the socket of %s: %w", front, errno)
	}
	return a, nil
}

func (a *acceptor) begin() unix.Errno {
	a.slot = a.w.add(a)
	a.w.acceptors = append(a.w.acceptors, a)
	if a.w.resume != 0 {
		return 0
	}
	return a.watch()
}

func (a *acceptor) watch() unix.Errno {
	return a.w.watch(a.fd, a.slot, clientSide, unix.EPOLLIN)
}

func (a *acceptor) remove() {
	a.w.do(func() {
		a.w.acceptors = slices.DeleteFunc(a.w.acceptors, func(other *acceptor) bool { return other == a })
		a.w.drop(a.slot)
		closeSocket(a.fd)
	})
}

// ready accepts clients.
func (a *acceptor) ready(side, uint32) {
	var from sockaddr
	for range min(1+a.lucky/timesLucky, acceptsAtOnce) {
		if !a.w.r.descriptors.take(connDescriptors) {
			a.w.pauseAccepting(unix.EMFILE)
			return
		}
		fd, errno := accept(a.fd, &from)
		if errno == 0 {
			a.w.place(a.front, fd, &from)
			continue
		}
		a.w.r.descriptors.give(connDescriptors)
		switch errno {
		case unix.EAGAIN:
			a.lucky = 0
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.w.pauseAccepting(errno)
			return
		}
		// Any other error is that client's, gone before it was accepted.
	}
	a.lucky++
}

func (*acceptor) sweep() {}

func (a *acceptor) stop() { closeSocket(a.fd) }

// place serves a client here, or where far fewer are.
func (w *worker) place(front lb.Frontend, fd int, from *sockaddr) {
	w.r.connections.Add(1)
	client, to := from.decode(), w
	for _, other := range w.r.workers {
		if other.load.Load()+imbalance < to.load.Load() {
			to = other
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
			_ = w.control(unix.EPOLL_CTL_DEL, a.fd, a.slot, clientSide, 0)
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
