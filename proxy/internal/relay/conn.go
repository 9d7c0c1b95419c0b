package relay

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// A connection takes two descriptors.
const connDescriptors = 2

// Backends that one connection tries at most, whatever its flow says.
const mostDials = 16

// events is what a socket is watched for, besides room when it is full: bytes, urgent ones, the end. Errors come anyway.
const events = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

// Dead peers are noticed by keep-alive probes, from keepAliveIdle seconds of silence on.
const (
	keepAliveIdle     = 60
	keepAliveInterval = 15
	keepAliveProbes   = 4
)

// socket is one end of a connection; events is what it is watched for, 0 if it is not.
type socket struct {
	fd     int
	events uint32
}

// conn is a client's connection and the backend's that belongs to it.
type conn struct {
	w               *worker
	slot            uint32
	flow            Flow
	client, backend socket
	up, down        half // to the backend, to the client
	connected       bool
	closing         bool // both sides have ended
	over            bool
	queued          bool          // among w.unread
	keptAlive       bool          // probes are on
	dialError       unix.Errno    // why the backend could not be had
	dials           uint32        // how often it was tried
	active          time.Duration // when something was carried last
}

// serve begins a connection that a listener accepted.
func (w *worker) serve(front lb.Frontend, fd int, from netip.AddrPort) {
	c := &conn{w: w, client: socket{fd: fd}, backend: socket{fd: -1}, active: w.now}
	flow, err := w.r.balancer.Begin(front, from, c.gone)
	if err != nil {
		resetSocket(fd)
		w.leave()
		return
	}
	c.flow, c.slot = flow, w.add(c)
	if !c.dial() {
		return
	}
	// The client's first words are here by now more often than not, and a backend on this node has
	// answered: then there is nothing to wait for.
	c.up.readable = true
	c.advance()
	if c.over {
		return
	}
	c.client.events = events
	if c.down.full {
		c.client.events |= unix.EPOLLOUT
	}
	if errno := w.watch(fd, c.slot, clientSide, c.client.events); errno != 0 {
		c.abort()
		return
	}
	c.watchBackend()
}

// leave ends the accounts of a connection.
func (w *worker) leave() {
	w.r.descriptors.give(connDescriptors)
	w.load.Add(-1)
	if w.r.connections.Add(-1) == 0 {
		select {
		case w.r.drained <- struct{}{}:
		default:
		}
	}
}

// gone ends the flow because its Balancer says so. Any thread calls it.
func (c *conn) gone() {
	c.w.post(func() {
		if !c.over {
			c.abort()
		}
	})
}

// dial connects to the flow's backend, and to its next one as long as it has one. False: c is over.
func (c *conn) dial() bool {
	for {
		errno := c.open()
		if errno == 0 {
			return true
		}
		if !c.again(errno) {
			return false
		}
	}
}

func (c *conn) open() unix.Errno {
	c.dials++
	to := encode(c.flow.Backend())
	fd, errno := newSocket(to.family(), unix.SOCK_STREAM)
	if errno != 0 {
		return errno
	}
	if errno = connect(fd, &to); errno != 0 && errno != unix.EINPROGRESS {
		closeSocket(fd)
		return errno
	}
	c.backend = socket{fd: fd}
	return 0
}

// again asks the flow for another backend after one could not be had. False: there is none, and c is over.
func (c *conn) again(errno unix.Errno) bool {
	if c.backend.fd >= 0 {
		closeSocket(c.backend.fd)
		c.backend.fd = -1
	}
	why := failure(errno)
	if why == Exhausted {
		c.w.r.complain(complainPorts, "cannot connect to a backend: this node has no source port, descriptor or memory left for it; "+
			"see net.ipv4.ip_local_port_range and the limit of open files", "backend", c.flow.Backend(), "err", errno)
	}
	c.dialError, c.up.full = 0, false
	if c.flow.Failed(why) && c.dials < mostDials {
		return true
	}
	c.abort()
	return false
}

func failure(errno unix.Errno) Failure {
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return Refused
	case unix.EADDRNOTAVAIL, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return Exhausted
	}
	return Unanswered
}

// redial goes on with the next backend. What the client has sent is held, for none of it was written.
func (c *conn) redial(errno unix.Errno) bool {
	if !c.again(errno) || !c.dial() {
		return false
	}
	if c.client.events != 0 { // not within serve, which does it itself
		c.watchBackend()
	}
	return !c.over
}

// watchBackend waits for the backend's answer, and its bytes.
func (c *conn) watchBackend() {
	c.backend.events = events
	if c.up.full || !c.connected {
		c.backend.events |= unix.EPOLLOUT
	}
	if errno := c.w.watch(c.backend.fd, c.slot, backendSide, c.backend.events); errno != 0 {
		c.abort()
		return
	}
	if !c.connected {
		c.w.dialing.push(c, c.w.now+c.w.r.connectTimeout)
	}
}

// establish notes that the backend has accepted.
func (c *conn) establish() {
	if !c.connected {
		c.connected = true
		c.flow.Connected()
	}
}

// ready takes an event. It is a hint: what really happened, reading and writing tells.
func (c *conn) ready(s side, what uint32) {
	in, out := &c.up, &c.down
	if s == backendSide {
		in, out = &c.down, &c.up
	}
	if s == backendSide && !c.connected {
		if what&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			c.dialError = pendingError(c.backend.fd)
		}
		if c.dialError == 0 {
			c.establish()
		}
	} else if what&unix.EPOLLERR != 0 && (in.pending() || in.ended) {
		c.abort() // there is nothing to read before the error, or it would wait for a slow reader
		return
	}
	if what&unix.EPOLLPRI != 0 {
		c.urgent(s, in)
	}
	if what&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		in.readable = true
		in.toEnd = in.toEnd || what&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	}
	if what&unix.EPOLLOUT != 0 {
		out.full = false
	}
	c.advance()
}

// urgent takes an urgent byte as one of the others: it stays in its place and loses its mark. Splicing stops in front of it.
func (c *conn) urgent(s side, in *half) {
	fd := c.client.fd
	if s == backendSide {
		fd = c.backend.fd
	}
	in.noSplice = true
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
}

// advance carries what can be carried, both ways.
func (c *conn) advance() {
	if c.over {
		return
	}
	c.active = c.w.now
	for {
		var more bool
		var errno unix.Errno
		if c.dialError == 0 {
			more, errno = c.carry(&c.up, &c.client, &c.backend)
		}
		if errno == 0 && c.dialError == 0 && c.connected {
			var also bool
			also, errno = c.carry(&c.down, &c.backend, &c.client)
			more = more || also
		}
		if errno != 0 {
			c.abort()
			return
		}
		if c.dialError == 0 {
			if more && !c.queued {
				c.queued = true
				c.w.unread = append(c.w.unread, c)
			}
			break
		}
		if !c.redial(c.dialError) {
			return
		}
	}
	if c.up.ended && c.down.ended {
		c.noteClosing()
		if c.up.told && c.down.told {
			c.finish(closeSocket)
		}
	}
}

func (c *conn) noteClosing() {
	if !c.closing {
		c.closing = true
		c.flow.Closing()
	}
}

// abort resets both sides.
func (c *conn) abort() {
	if c.connected {
		c.noteClosing()
	}
	c.finish(resetSocket)
}

func (c *conn) finish(end func(fd int)) {
	c.over = true
	end(c.client.fd)
	if c.backend.fd >= 0 {
		end(c.backend.fd)
	}
	c.drop(&c.up)
	c.drop(&c.down)
	c.w.drop(c.slot)
	c.flow.End()
	c.w.leave()
}

// timedOut ends an attempt to connect.
func (c *conn) timedOut() {
	if c.redial(unix.ETIMEDOUT) {
		c.advance()
	}
}

func (c *conn) stop() { c.abort() }

// sweep ends a connection that carries nothing for too long, and turns on probes for one that lasts.
func (c *conn) sweep() {
	if idle := c.flow.Idle(); idle > 0 && c.w.now-c.active >= idle {
		c.abort()
		return
	}
	if !c.keptAlive && c.connected {
		c.keptAlive = true
		keepAlive(c.client.fd)
		keepAlive(c.backend.fd)
	}
}

func keepAlive(fd int) {
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAliveIdle)
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAliveInterval)
	_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveProbes)
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

func (c *conn) sideOf(s *socket) side {
	if s == &c.client {
		return clientSide
	}
	return backendSide
}
