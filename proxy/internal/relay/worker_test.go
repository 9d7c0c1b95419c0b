package relay

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counter is a handler that counts its events.
type counter int

func (n *counter) ready(side, uint32) { *n++ }
func (*counter) sweep()               {}
func (*counter) stop()                {}

func TestEventsOfASlotsLastOwnerAreForgotten(t *testing.T) {
	w := &worker{}
	var first, second counter
	id := w.add(&first)
	event := unix.EpollEvent{Fd: int32(id << 1), Pad: int32(w.slots[id].gen)}
	w.dispatch(&event)
	w.drop(id)
	w.dispatch(&event)
	if next := w.add(&second); next != id {
		t.Fatalf("slot %d, want %d again", next, id)
	}
	w.dispatch(&event)
	if first != 1 || second != 0 {
		t.Errorf("the first owner saw %d events, the second %d", first, second)
	}
}

func TestDialQueueForgetsAttemptsThatEnded(t *testing.T) {
	var q dialQueue
	waiting, connected, over, another := &conn{dials: 1}, &conn{dials: 1}, &conn{dials: 1}, &conn{dials: 1}
	for i, c := range []*conn{connected, over, another, waiting} {
		q.push(c, time.Duration(i))
	}
	connected.connected, over.over = true, true
	another.dials = 2
	if due, ok := q.due(); !ok || due != 3 {
		t.Errorf("due %v, %v, want that of the one that waits", due, ok)
	}
	waiting.over = true
	if _, ok := q.due(); ok || q.waiting != nil {
		t.Error("nobody waits, and the queue is not empty")
	}
}
