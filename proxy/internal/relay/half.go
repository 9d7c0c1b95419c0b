package relay

import (
	"golang.org/x/sys/unix"
)

const (
	// A direction that has carried this much is a long one: from here on it is spliced.
	spliceAfter = 64 << 10
	// Splices in a row that moved less than this each end it: requests and answers are cheaper to copy.
	smallSplice  = 4 << 10
	smallSplices = 16
	// What a splice takes at least, where readers are slow; pipeSize is the most.
	leastSplice = 64 << 10
	// What one direction may carry before the worker looks after the others.
	turnBytes = 1 << 20
)

// half is one direction of a connection: what it reads from one socket it writes to the other.
type half struct {
	readable bool // there may be more to read
	toEnd    bool // the end, an error or an urgent byte is among it: a short read is not the last one
	full     bool // the other side takes no more until it says so
	ended    bool // the end was read
	told     bool // and passed on
	noSplice bool // this kernel or sandbox cannot
	held     held // read, not written yet
	pipe     pipe // while piped > 0
	piped    int
	carried  uint64
	small    int // splices in a row that were not worth it
	chunk    int // what the next splice takes
	writes   int
}

// pending says whether something was read and not written.
func (h *half) pending() bool { return len(h.held.rest) > 0 || h.piped > 0 }

// carry moves what there is from one socket to the other, until one of them has no more or takes no more. more says that
// the turn ended before that.
func (c *conn) carry(h *half, from, to *socket) (more bool, errno unix.Errno) {
	for turn := 0; turn < turnBytes; {
		if h.full {
			return false, 0
		}
		if h.pending() {
			if errno := c.flush(h, to); errno != 0 {
				return false, errno
			}
			continue
		}
		if h.ended {
			return false, c.tellEnd(h, to)
		}
		if !h.readable {
			return false, 0
		}
		n, errno := c.read(h, from, to)
		if errno != 0 {
			return false, errno
		}
		turn += n
	}
	return true, 0
}

// tellEnd passes the end of one direction on.
func (c *conn) tellEnd(h *half, to *socket) unix.Errno {
	if h.told || to == &c.backend && !c.connected {
		return 0
	}
	h.told = true
	if c.up.told && c.down.told {
		return 0 // closing says it as well
	}
	if errno := sendEnd(to.fd); errno != unix.ENOTCONN {
		return errno
	}
	return 0
}

// read takes what is there and writes it, or holds it.
func (c *conn) read(h *half, from, to *socket) (int, unix.Errno) {
	if h.carried >= spliceAfter && h.small < smallSplices && !h.noSplice {
		if p, ok := c.w.pipes.get(); ok {
			return c.spliceIn(h, p, from)
		}
	}
	buf := c.w.buffers.get()
	if to == &c.backend && !c.connected {
		buf = buf[:smallRest] // it may have to wait for long
	}
	n, errno := receive(from.fd, buf)
	switch {
	case errno == unix.EAGAIN:
		h.readable = false
		return 0, 0
	case errno != 0:
		return 0, errno
	case n == 0:
		h.ended, h.readable = true, false
		return 0, 0
	}
	if n < len(buf) {
		h.readable = h.toEnd
	} else {
		h.small = 0
	}
	sent, errno := c.write(h, to, buf[:n])
	if errno == 0 && sent < n {
		h.held = c.w.buffers.hold(buf[sent:n])
	}
	return n, errno
}

// write sends what the other side takes, and asks to be told when it takes more.
func (c *conn) write(h *half, to *socket, data []byte) (int, unix.Errno) {
	c.noDelay(h, to)
	n, errno := send(to.fd, data)
	switch errno {
	case 0:
		h.writes++
		if to == &c.backend {
			c.establish()
		}
		c.count(h, n)
		if n < len(data) {
			return n, c.awaitRoom(h, to)
		}
		return n, 0
	case unix.EAGAIN:
		return 0, c.awaitRoom(h, to)
	}
	if to == &c.backend && !c.connected {
		c.dialError, h.full = errno, true
		return 0, 0
	}
	return 0, errno
}

// noDelay has the second piece and all that follow leave at once. The first does so anyway, and many connections
// have no second. The client's socket has it from its listener.
func (c *conn) noDelay(h *half, to *socket) {
	if h.writes == 1 && to == &c.backend {
		_ = setInt(to.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
}

// awaitRoom leaves a direction until the other side takes more.
func (c *conn) awaitRoom(h *half, to *socket) unix.Errno {
	h.full = true
	if to.events == 0 || to.events&unix.EPOLLOUT != 0 {
		return 0 // not watched yet, or watched for it already
	}
	to.events |= unix.EPOLLOUT
	return c.w.control(unix.EPOLL_CTL_MOD, to.fd, c.slot, c.sideOf(to), to.events)
}

// flush writes what is held.
func (c *conn) flush(h *half, to *socket) unix.Errno {
	if h.piped > 0 {
		return c.spliceOut(h, to)
	}
	n, errno := c.write(h, to, h.held.rest)
	h.held.rest = h.held.rest[n:]
	if len(h.held.rest) == 0 {
		c.w.buffers.release(&h.held)
	}
	return errno
}

// spliceIn moves what is there into a pipe. The pipe is empty, so EAGAIN is the socket's.
func (c *conn) spliceIn(h *half, p pipe, from *socket) (int, unix.Errno) {
	if h.chunk == 0 {
		h.chunk = pipeSize
	}
	n, errno := splice(from.fd, p.write, h.chunk)
	if n > 0 {
		if h.small++; n >= smallSplice {
			h.small = 0
		}
		h.pipe, h.piped = p, n
		return n, 0
	}
	c.w.pipes.put(p)
	switch errno {
	case 0:
		h.ended, h.readable = true, false
	case unix.EAGAIN:
		h.readable = false
	case unix.EINVAL, unix.ENOSYS, unix.EPERM:
		h.noSplice = true
	default:
		return 0, errno
	}
	return 0, 0
}

func (c *conn) spliceOut(h *half, to *socket) unix.Errno {
	c.noDelay(h, to)
	n, errno := splice(h.pipe.read, to.fd, h.piped)
	if errno == unix.EAGAIN {
		h.chunk = max(h.chunk/2, leastSplice) // a slow reader need not hold much
		return c.awaitRoom(h, to)
	}
	if errno != 0 {
		return errno
	}
	h.writes++
	c.count(h, n)
	if h.piped -= n; h.piped == 0 {
		h.chunk = min(h.chunk*2, pipeSize)
		c.w.pipes.put(h.pipe)
	}
	return 0
}

// drop gives back what a direction holds.
func (c *conn) drop(h *half) {
	c.w.buffers.release(&h.held)
	if h.piped > 0 {
		c.w.pipes.discard(h.pipe)
		h.piped = 0
	}
}

// count tells the flow what was carried.
func (c *conn) count(h *half, n int) {
	h.carried += uint64(n)
	if h == &c.up {
		c.flow.Sent(1, uint64(n))
	} else {
		c.flow.Answered(1, uint64(n))
	}
}
