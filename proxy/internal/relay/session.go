package relay

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// keptDatagram is the longest one that is kept until a backend has answered: a question, not a transfer.
const keptDatagram = 2048

// session is what a UDP client and its backend say to each other: a socket that is connected to the backend,
// and the client's address, to which answers go from the listener's socket.
type session struct {
	l        *udpListener
	client   sockaddr
	flow     Flow
	fd       int // -1: none
	slot     uint32
	answered bool
	first    []byte // a datagram to repeat to the next backend, until one has answered
	over     bool
	active   time.Duration
	// Its neighbours in the order of use.
	older, newer *session
}

// open begins a session, if the Balancer lets it. Where there is no room the listener's least recently used one gives way.
func (l *udpListener) open(from *sockaddr) *session {
	s, err := l.begin(from)
	if errors.Is(err, ErrFull) && l.oldest != nil {
		l.oldest.flow.GiveWay()
		l.oldest.end()
		s, err = l.begin(from)
	}
	if errors.Is(err, ErrFull) {
		l.w.r.complain(complainSessions, "cannot carry datagrams of another client: there are too many sessions", "sessions", l.w.r.sessions.Load())
	}
	if err != nil {
		return nil
	}
	return s.start()
}

// begin makes a session that has a flow and nothing else.
func (l *udpListener) begin(from *sockaddr) (*session, error) {
	w := l.w
	if w.r.sessions.Add(1) > w.r.maxSessions || !w.r.descriptors.take(1) {
		w.r.sessions.Add(-1)
		return nil, ErrFull
	}
	s := &session{l: l, client: *from, fd: -1, active: w.now}
	flow, err := w.r.balancer.Begin(l.front, from.decode(), s.gone)
	if err != nil {
		w.r.descriptors.give(1)
		w.r.sessions.Add(-1)
		return nil, err
	}
	s.flow = flow
	return s, nil
}

// start gives a session a backend. It returns nil if none could be had.
func (s *session) start() *session {
	s.slot = s.l.w.add(s)
	s.l.sessions[s.client] = s
	s.l.push(s)
	if errno := s.connect(); errno != 0 && !s.next(errno) {
		return nil
	}
	return s
}

// used notes that the session carries something.
func (s *session) used() {
	s.active = s.l.w.now
	if s.newer != nil {
		s.l.take(s)
		s.l.push(s)
	}
}

// connect opens the socket to the flow's backend, instead of another one that it had.
func (s *session) connect() unix.Errno {
	s.disconnect()
	to := encode(s.flow.Backend())
	fd, errno := newSocket(to.family(), unix.SOCK_DGRAM)
	if errno != 0 {
		return errno
	}
	errno = connect(fd, &to)
	if errno == 0 {
		errno = s.l.w.watch(fd, s.slot, backendSide, unix.EPOLLIN)
	}
	if errno != 0 {
		closeSocket(fd)
		return errno
	}
	s.fd = fd
	return 0
}

func (s *session) disconnect() {
	if s.fd >= 0 {
		closeSocket(s.fd)
		s.fd = -1
	}
}

// sendUp sends datagrams of the worker's batch to the backend.
func (s *session) sendUp(first, last int) {
	b := s.l.w.batch
	s.used()
	s.flow.Sent(uint64(last-first), b.bytes(first, last))
	if !s.answered && s.first == nil {
		s.first = b.copy(first)
	}
	if b.send(s.fd, first, last, nil) {
		if s.refused(); !s.over {
			_ = b.send(s.fd, first, last, nil)
		}
	}
}

// next goes on with the flow's next backend. False: it has none; without a socket the session is over.
func (s *session) next(errno unix.Errno) bool {
	for range mostDials {
		if !s.flow.Failed(failure(errno)) {
			break
		}
		if errno = s.connect(); errno == 0 {
			return true
		}
	}
	if s.fd < 0 {
		s.end()
	}
	return false
}

// refused takes the backend's port unreachable: what was asked is asked again elsewhere. If there is no other
// backend, this one may listen again some time.
func (s *session) refused() {
	if s.next(unix.ECONNREFUSED) && s.first != nil {
		_, _ = send(s.fd, s.first)
	}
}

// ready carries what the backend answered.
func (s *session) ready(side, uint32) {
	b := s.l.w.batch
	for range batchesAtOnce {
		n, errno := b.receive(s.fd, false)
		if errno == unix.ECONNREFUSED {
			if s.refused(); s.over {
				return
			}
			continue
		}
		if errno != 0 {
			return
		}
		if !s.answered {
			s.answered, s.first = true, nil
			s.flow.Connected()
		}
		s.used()
		s.flow.Answered(uint64(n), b.bytes(0, n))
		_ = b.send(s.l.fd, 0, n, &s.client)
		if n < batchSize {
			return
		}
	}
}

// gone ends the session because its Balancer says so. Any thread calls it.
func (s *session) gone() {
	s.l.w.post(func() {
		if !s.over {
			s.end()
		}
	})
}

func (s *session) end() {
	w := s.l.w
	s.over = true
	s.disconnect()
	w.drop(s.slot)
	delete(s.l.sessions, s.client)
	s.l.take(s)
	w.r.descriptors.give(1)
	w.r.sessions.Add(-1)
	s.l.leave()
	s.flow.Closing()
	s.flow.End()
}

func (s *session) sweep() {
	if idle := s.flow.Idle(); idle > 0 && s.l.w.now-s.active >= idle {
		s.end()
	}
}

func (s *session) stop() {
	s.l.leaving = false // it is closed by its own stop
	s.end()
}
