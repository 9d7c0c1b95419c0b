// Package relay carries clients' TCP connections and UDP datagrams to backends, through sockets.
//
// It knows sockets and no services: who may connect, and to which backend, is the Balancer's to say. One
// thread for each processor waits for its own sockets (epoll) and does all that its connections need, so a
// connection's state has one owner and no lock. What a client sends is carried by plain copies at
// first, and once a direction turns out to be long by splice, which moves pages instead.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Failure is why a backend could not be had.
type Failure int

const (
	// Refused means that the backend's host answered, and that nobody listens there.
	Refused Failure = iota
	// Unanswered means that nothing came back in time, or that there is no way to the backend.
	Unanswered
	// Exhausted means that this node had no source port, descriptor or memory left. The backend is not to blame.
	Exhausted
)

// String returns a word for the log.
func (f Failure) String() string {
	switch f {
	case Refused:
		return "refused"
	case Unanswered:
		return "unanswered"
	case Exhausted:
		return "exhausted"
	}
	return fmt.Sprintf("failure-%d", int(f))
}

// ErrFull is what a Balancer returns where there is no room for another flow: a UDP session that is used less gives way then.
var ErrFull = errors.New("no room for another flow")

// Balancer chooses who serves a client. Its methods are called by several threads at once.
type Balancer interface {
	// Begin returns a new flow of this client, or an error when it may not be served: its connection
	// is reset, its datagram dropped. Whoever calls gone, at any time and from anywhere, ends the flow: the
	// client's connection is reset, its UDP session forgotten. It may be called again, and after End.
	Begin(front lb.Frontend, client netip.AddrPort, gone func()) (Flow, error)
}

// Flow is one client's connection, or its UDP session. One thread calls its methods; none of them may block.
type Flow interface {
	// Backend returns where this flow goes.
	Backend() netip.AddrPort
	// Connected says that the backend accepted the connection; of UDP, that it answered for the first time.
	Connected()
	// Failed says that the backend could not be had. True: Backend returns another one now, try that.
	Failed(why Failure) (again bool)
	// Sent counts what went to the backend. Of TCP, a packet is a piece as it was written.
	Sent(packets, bytes uint64)
	// Answered counts what went back to the client.
	Answered(packets, bytes uint64)
	// Closing says that both sides have ended, or one has reset: what is left is to deliver.
	Closing()
	// GiveWay says that the flow ends to make room for another one.
	GiveWay()
	// End says that the flow is over. It is the last call.
	End()
	// Idle returns how long the flow may carry nothing before it is ended; 0 is for ever.
	Idle() time.Duration
}

// Options says what a Relay works with. Only Balancer must be given.
type Options struct {
	Balancer       Balancer
	Log            *slog.Logger  // nil: nothing is logged
	Threads        int           // 0: one for each processor that Go uses
	ConnectTimeout time.Duration // until another backend is tried; 0: defaultConnectTimeout
	MaxSessions    int           // UDP sessions; 0: defaultMaxSessions

	// Routed says that addresses may be this node's by a local route, which lets IPv4 bind them and IPv6 not. Whoever
	// sets it sees to it that they are: an IPv6 address that is nobody's can be bound then.
	Routed bool
}

// The kernel repeats a SYN after 1 s and after 3 s: a backend has three of them to answer.
const defaultConnectTimeout = 3500 * time.Millisecond

// A session costs a descriptor and about 5 KB in the kernel.
const defaultMaxSessions = 65536

// Relay has listeners on frontends, and what clients opened through them.
type Relay struct {
	balancer       Balancer
	log            *slog.Logger
	connectTimeout time.Duration
	maxSessions    int64
	routed         bool
	start          time.Time
	skew           atomic.Int64 // tests move the clock by it
	descriptors    descriptors
	workers        []*worker
	stopped        sync.WaitGroup // workers
	connections    atomic.Int64   // TCP
	sessions       atomic.Int64   // UDP
	drained        chan struct{}  // a token whenever the last connection ended
	complained     [complaints]atomic.Int64

	mu        sync.Mutex // Sync and Shutdown
	listeners map[lb.Frontend]listener
	turn      int
	closed    bool
}

// Threads that Go has for the rest of the process while all workers are busy.
const spareThreads = 2

// What is said to the log no more than once in complaintInterval.
const (
	complainDescriptors = iota
	complainPorts
	complainSessions
	complaints
)

const complaintInterval = 10 * time.Second

// New returns a relay without listeners. Its threads run until Shutdown.
func New(o Options) *Relay {
	r := &Relay{
		balancer: o.Balancer, log: o.Log, connectTimeout: o.ConnectTimeout, maxSessions: int64(o.MaxSessions), routed: o.Routed,
		start: time.Now(), drained: make(chan struct{}, 1), listeners: map[lb.Frontend]listener{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.connectTimeout == 0 {
		r.connectTimeout = defaultConnectTimeout
	}
	if r.maxSessions == 0 {
		r.maxSessions = defaultMaxSessions
	}
	r.descriptors.raise()
	threads := o.Threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	roomForThreads(threads)
	for range threads {
		w := newWorker(r)
		r.workers = append(r.workers, w)
		r.stopped.Add(1)
		go w.run()
	}
	return r
}

// roomForThreads has Go run more threads at once than there are workers. With none to spare, Go would take a sleeping worker's
// place away every 20 us and have to give it back at the next event, which costs more than a short connection does.
func roomForThreads(threads int) {
	if want := threads + spareThreads; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}

// Shutdown stops accepting at once, lets connections end until ctx does, and resets the rest. UDP sessions have
// no end of their own: they go on until then. An error says how many connections were cut.
func (r *Relay) Shutdown(ctx context.Context) error {
	if !r.close() {
		return nil
	}
	var err error
	for r.connections.Load() > 0 && err == nil {
		select {
		case <-r.drained:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	left := r.connections.Load()
	for _, w := range r.workers {
		w.post(w.stop)
	}
	r.stopped.Wait()
	if left > 0 {
		return fmt.Errorf("reset %d connections that had not ended: %w", left, err)
	}
	return nil
}

// close stops accepting, and says whether it was the first to do so.
func (r *Relay) close() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.closed = true
	for front, l := range r.listeners {
		if front.Protocol == lb.TCP {
			l.remove()
			delete(r.listeners, front)
		}
	}
	return true
}

// clock is the time since the relay began.
func (r *Relay) clock() time.Duration {
	return time.Since(r.start) + time.Duration(r.skew.Load())
}

// complain logs a warning unless it was said a moment ago.
func (r *Relay) complain(what int, message string, args ...any) {
	last, now := r.complained[what].Load(), int64(r.clock())
	if last != 0 && now-last < int64(complaintInterval) || !r.complained[what].CompareAndSwap(last, now) {
		return
	}
	r.log.Warn(message, args...)
}

// next returns the worker for the next listener: they take turns.
func (r *Relay) next() *worker {
	r.turn++
	return r.workers[r.turn%len(r.workers)]
}

var errClosed = errors.New("the relay is shut down")
