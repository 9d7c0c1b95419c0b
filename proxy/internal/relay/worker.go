package relay

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sweepInterval = time.Second
	// How long listeners rest when the node has no descriptor left. Clients wait in the kernel's queue meanwhile.
	pauseInterval = 50 * time.Millisecond
	eventsAtOnce  = 256
)

// handler is what a descriptor's events are for. A connection has two descriptors, told apart by side.
type handler interface {
	ready(side side, events uint32)
	sweep() // once in a while: is it idle?
	stop()  // the worker ends
}

type side uint32

const (
	clientSide side = iota
	backendSide
)

// slot gives a handler a number for the kernel to return with its events. gen tells an event that was
// already on its way when the slot got another owner.
type slot struct {
	handler handler
	gen     uint32
}

// worker is a thread with all its sockets. Its fields belong to that thread, but for inbox, wake and load.
type worker struct {
	r        *Relay
	epoll    int
	slots    []slot
	free     []uint32
	now      time.Duration // by the relay's clock, when the last events came
	sweepDue time.Duration
	dialing  dialQueue
	unread   []*conn // there was more to carry than a turn lasts
	buffers  buffers
	pipes    pipes
	batch    *batch // of datagrams; nil until there is UDP

	acceptors []*acceptor
	resume    time.Duration // when listeners are looked at again; 0: they are
	stopping  bool

	load atomic.Int64 // connections

	wake     int // eventfd
	mu       sync.Mutex
	inbox    []func()
	signaled bool // or ended: nobody reads it any more
}

func newWorker(r *Relay) *worker {
	w := &worker{r: r}
	w.pipes.descriptors = &r.descriptors
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		panic(fmt.Sprintf("create epoll: %v", err)) // no descriptor for the first of them: nothing could work
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		panic(fmt.Sprintf("create eventfd: %v", err))
	}
	w.watch(w.wake, w.add(wakeUp{w}), 0, unix.EPOLLIN)
	return w
}

// post has the worker run something soon. Anybody may call it.
func (w *worker) post(run func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inbox = append(w.inbox, run)
	if !w.signaled {
		w.signaled = true
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// do has the worker run something and waits for it.
func (w *worker) do(run func()) {
	done := make(chan struct{})
	w.post(func() { run(); close(done) })
	<-done
}

// wakeUp runs what was posted.
type wakeUp struct{ w *worker }

func (u wakeUp) ready(side, uint32) {
	var count [8]byte
	_, _ = unix.Read(u.w.wake, count[:])
	u.w.mu.Lock()
	posted := u.w.inbox
	u.w.inbox, u.w.signaled = nil, false
	u.w.mu.Unlock()
	for _, run := range posted {
		run()
	}
}

func (wakeUp) sweep() {}
func (wakeUp) stop()  {}

// run is the thread.
func (w *worker) run() {
	runtime.LockOSThread()
	defer w.r.stopped.Done()
	events := make([]unix.EpollEvent, eventsAtOnce)
	for !w.stopping {
		n := w.wait(events)
		w.now = w.r.clock()
		for i := range n {
			w.dispatch(&events[i])
		}
		w.carryOn()
		w.timers()
	}
	for _, s := range w.slots {
		if s.handler != nil {
			s.handler.stop()
		}
	}
	w.pipes.close()
	w.mu.Lock()
	w.signaled = true
	w.mu.Unlock()
	unix.Close(w.wake)
	unix.Close(w.epoll)
}

func (w *worker) stop() { w.stopping = true }

// wait returns how many events there are.
func (w *worker) wait(events []unix.EpollEvent) int {
	n, err := unix.EpollWait(w.epoll, events, w.timeout())
	if err != nil { // interrupted
		return 0
	}
	return n
}

// timeout returns how long to sleep, in milliseconds.
func (w *worker) timeout() int {
	if len(w.unread) > 0 {
		return 0
	}
	due := time.Duration(-1)
	sooner := func(at time.Duration) {
		if due < 0 || at < due {
			due = at
		}
	}
	if len(w.slots)-len(w.free) > len(w.acceptors)+1 {
		sooner(w.sweepDue)
	}
	if at, ok := w.dialing.due(); ok {
		sooner(at)
	}
	if w.resume != 0 {
		sooner(w.resume)
	}
	if due < 0 {
		return -1
	}
	return int(max(0, due-w.now+time.Millisecond-1) / time.Millisecond)
}

func (w *worker) dispatch(e *unix.EpollEvent) {
	s := &w.slots[uint32(e.Fd)>>1]
	if s.handler != nil && s.gen == uint32(e.Pad) {
		s.handler.ready(side(e.Fd)&1, e.Events)
	}
}

// carryOn gives those that had more to carry another turn.
func (w *worker) carryOn() {
	turn := w.unread
	w.unread = nil
	for _, c := range turn {
		c.queued = false
		c.advance()
	}
}

func (w *worker) timers() {
	if w.resume != 0 && w.now >= w.resume {
		w.acceptAgain()
	}
	w.dialing.expire(w.now)
	if w.now < w.sweepDue {
		return
	}
	w.sweepDue = w.now + sweepInterval
	for _, s := range w.slots {
		if s.handler != nil {
			s.handler.sweep()
		}
	}
}

// add gives a handler a slot.
func (w *worker) add(h handler) uint32 {
	if n := len(w.free); n > 0 {
		id := w.free[n-1]
		w.free = w.free[:n-1]
		w.slots[id].handler = h
		return id
	}
	w.slots = append(w.slots, slot{handler: h})
	return uint32(len(w.slots) - 1)
}

// drop takes the slot back. Events that are on their way find nobody.
func (w *worker) drop(id uint32) {
	w.slots[id].handler = nil
	w.slots[id].gen++
	w.free = append(w.free, id)
}

// watch has the slot's handler told of a descriptor's events.
func (w *worker) watch(fd int, id uint32, s side, events uint32) unix.Errno {
	return w.control(unix.EPOLL_CTL_ADD, fd, id, s, events)
}

func (w *worker) control(op, fd int, id uint32, s side, events uint32) unix.Errno {
	e := unix.EpollEvent{Events: events, Fd: int32(id<<1 | uint32(s)), Pad: int32(w.slots[id].gen)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.epoll), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}
