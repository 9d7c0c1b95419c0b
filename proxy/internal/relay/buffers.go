package relay

import (
	"golang.org/x/sys/unix"
)

const (
	// bufferSize is what one read takes, and so the most that a direction holds for a slow reader when it copies.
	bufferSize = 64 << 10
	// A remainder below this is copied: a whole buffer for it would be held for a byte.
	smallRest = 4 << 10
	// Buffers and pipes that a worker keeps for the next who needs one.
	sparesKept = 64
	// pipeSize is the most that a direction holds for a slow reader when it splices.
	pipeSize = 256 << 10
)

// buffers is a worker's read buffer. All its connections read into the same one; a remainder that a
// peer does not take yet stays with its connection, and the worker goes on with another buffer.
type buffers struct {
	current []byte
	spare   [][]byte
}

// get returns the buffer to read into.
func (b *buffers) get() []byte {
	if b.current == nil {
		if n := len(b.spare); n > 0 {
			b.current, b.spare = b.spare[n-1], b.spare[:n-1]
		} else {
			b.current = make([]byte, bufferSize)
		}
	}
	return b.current
}

// hold keeps a remainder of the current buffer.
func (b *buffers) hold(rest []byte) held {
	if len(rest) <= smallRest {
		return held{rest: append([]byte(nil), rest...)}
	}
	whole := b.current
	b.current = nil
	return held{rest: rest, whole: whole}
}

// release takes back what hold gave away.
func (b *buffers) release(h *held) {
	if h.whole != nil && len(b.spare) < sparesKept {
		b.spare = append(b.spare, h.whole)
	}
	*h = held{}
}

// held is what a connection's peer does not take yet.
type held struct{ rest, whole []byte }

// pipe is what splice moves pages through.
type pipe struct{ read, write int }

// pipes are those of a worker that are empty.
type pipes struct {
	descriptors *descriptors
	spare       []pipe
}

// get returns an empty pipe, or false when the node has none left: then one copies.
func (p *pipes) get() (pipe, bool) {
	if n := len(p.spare); n > 0 {
		found := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return found, true
	}
	if !p.descriptors.take(2) {
		return pipe{}, false
	}
	var ends [2]int
	if unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		p.descriptors.give(2)
		return pipe{}, false
	}
	// Without permission it stays at 64 KiB, which is slower and right.
	_, _ = unix.FcntlInt(uintptr(ends[0]), unix.F_SETPIPE_SZ, pipeSize)
	return pipe{ends[0], ends[1]}, true
}

// put takes an empty pipe back.
func (p *pipes) put(empty pipe) {
	if len(p.spare) < sparesKept {
		p.spare = append(p.spare, empty)
		return
	}
	p.discard(empty)
}

// discard closes a pipe and what is in it.
func (p *pipes) discard(used pipe) {
	closeSocket(used.read)
	closeSocket(used.write)
	p.descriptors.give(2)
}

func (p *pipes) close() {
	for _, spare := range p.spare {
		p.discard(spare)
	}
	p.spare = nil
}
