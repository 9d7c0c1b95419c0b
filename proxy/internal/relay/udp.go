package relay

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	// batchSize is how many datagrams one call receives or sends.
	batchSize = 32
	// largestDatagram is what the length field of UDP can say.
	largestDatagram = 65535
	// Batches that one event may take before the worker looks after others.
	batchesAtOnce = 8
)

// batch is a worker's room for datagrams. Pages of it that no datagram was so large to need are never touched.
type batch struct {
	messages [batchSize]message
	vectors  [batchSize]unix.Iovec
	from     [batchSize]sockaddr
	room     []byte
}

func newBatch() *batch {
	b := &batch{room: make([]byte, batchSize*largestDatagram)}
	for i := range b.messages {
		b.vectors[i].Base = &b.room[i*largestDatagram]
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

// receive fills the batch; named says that who sent is of interest.
func (b *batch) receive(fd int, named bool) (int, unix.Errno) {
	for i := range b.messages {
		b.vectors[i].SetLen(largestDatagram)
		b.messages[i].header.Name, b.messages[i].header.Namelen = nil, 0
		if named {
			b.messages[i].header.Name, b.messages[i].header.Namelen = &b.from[i].raw[0], uint32(len(b.from[i].raw))
		}
	}
	n, errno := receiveBatch(fd, b.messages[:])
	for i := 0; named && i < n; i++ {
		b.from[i].size = b.messages[i].header.Namelen
		clear(b.from[i].raw[b.from[i].size:]) // it is compared as a whole
	}
	return n, errno
}

// send sends datagrams first to last of the batch, as they were received. What the socket does not take is lost, as
// a full queue on the way would lose it. refused tells that nobody listens where an earlier one went.
func (b *batch) send(fd, first, last int, to *sockaddr) (refused bool) {
	for i := first; i < last; i++ {
		b.vectors[i].SetLen(int(b.messages[i].n))
		b.messages[i].header.Name, b.messages[i].header.Namelen = nil, 0
		if to != nil {
			b.messages[i].header.Name, b.messages[i].header.Namelen = &to.raw[0], to.size
		}
	}
	for first < last {
		n, errno := sendBatch(fd, b.messages[first:last])
		switch errno {
		case 0:
			first += n
		case unix.ECONNREFUSED:
			return true
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			return false
		default:
			first++ // it is this one's: too long for the way, say
		}
	}
	return false
}

// copy returns a datagram that outlives the batch, nil if it is long.
func (b *batch) copy(i int) []byte {
	if b.messages[i].n > keptDatagram {
		return nil
	}
	return append([]byte{}, b.room[i*largestDatagram:][:b.messages[i].n]...)
}

// bytes returns how much datagrams first to last carry.
func (b *batch) bytes(first, last int) (sum uint64) {
	for i := first; i < last; i++ {
		sum += uint64(b.messages[i].n)
	}
	return sum
}

// udpListener is a socket at a frontend's address. It belongs to one worker, with all its sessions: what
// clients send arrives here, and what backends answer leaves from here.
type udpListener struct {
	w        *worker
	front    lb.Frontend
	fd       int
	slot     uint32
	sessions map[sockaddr]*session
	leaving  bool // no new sessions; gone with the last one
	// The ends of the list of sessions, in the order of use.
	oldest, newest *session
}

// push makes a session the one that was used last.
func (l *udpListener) push(s *session) {
	s.older = l.newest
	if l.newest != nil {
		l.newest.newer = s
	} else {
		l.oldest = s
	}
	l.newest = s
}

// take takes a session off the list.
func (l *udpListener) take(s *session) {
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		l.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		l.newest = s.older
	}
	s.older, s.newer = nil, nil
}

func (r *Relay) listenUDP(front lb.Frontend) (listener, error) {
	if l := r.lingering(front); l != nil {
		return l, nil
	}
	fd, err := r.bind(front, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	if setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveRoom) != 0 {
		_ = setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveRoom)
	}
	l := &udpListener{w: r.next(), front: front, fd: fd, sessions: map[sockaddr]*session{}}
	var errno unix.Errno
	l.w.do(func() { errno = l.watch() })
	if errno != 0 {
		closeSocket(fd)
		return nil, fmt.Errorf("watch the socket of %s: %w", front, errno)
	}
	return l, nil
}

// lingering returns the listener that such a frontend had, if sessions still need it.
func (r *Relay) lingering(front lb.Frontend) *udpListener {
	var found *udpListener
	for _, w := range r.workers {
		w.do(func() {
			for _, s := range w.slots {
				if l, ok := s.handler.(*udpListener); ok && l.front == front {
					l.leaving = false
					found = l
				}
			}
		})
	}
	return found
}

func (l *udpListener) watch() unix.Errno {
	if l.w.batch == nil {
		l.w.batch = newBatch()
	}
	l.slot = l.w.add(l)
	errno := l.w.watch(l.fd, l.slot, clientSide, unix.EPOLLIN)
	if errno != 0 {
		l.w.drop(l.slot)
	}
	return errno
}

func (l *udpListener) remove() {
	l.w.do(func() {
		l.leaving = true
		l.leave()
	})
}

// leave closes a socket that is not wanted any more by anybody.
func (l *udpListener) leave() {
	if l.leaving && len(l.sessions) == 0 {
		l.w.drop(l.slot)
		closeSocket(l.fd)
	}
}

// ready carries what clients sent.
func (l *udpListener) ready(side, uint32) {
	b := l.w.batch
	for range batchesAtOnce {
		n, errno := b.receive(l.fd, true)
		if errno != 0 {
			return
		}
		for first := 0; first < n; {
			// A client that sends much has several in a row.
			from, last := &b.from[first], first+1
			for last < n && b.from[last] == *from {
				last++
			}
			if s := l.session(from); s != nil {
				s.sendUp(first, last)
			}
			first = last
		}
		if n < batchSize || len(l.sessions) == 0 && l.leaving {
			return
		}
	}
}

// session returns the client's session, a new one if it has none, nil if it may have none.
func (l *udpListener) session(from *sockaddr) *session {
	if s := l.sessions[*from]; s != nil || l.leaving {
		return s
	}
	return l.open(from)
}

func (*udpListener) sweep() {}
func (l *udpListener) stop() {
	closeSocket(l.fd)
}
