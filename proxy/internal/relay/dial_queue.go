package relay

import "time"

// dialQueue has the attempts to connect that are under way. All wait equally long, so they end in order.
type dialQueue struct {
	waiting []dialing
}

// dialing is one attempt; nth tells it from the connection's next one.
type dialing struct {
	c   *conn
	nth uint32
	due time.Duration
}

func (q *dialQueue) push(c *conn, due time.Duration) {
	q.waiting = append(q.waiting, dialing{c, c.dials, due})
}

// due returns when the next attempt ends.
func (q *dialQueue) due() (time.Duration, bool) {
	q.forget()
	if len(q.waiting) == 0 {
		return 0, false
	}
	return q.waiting[0].due, true
}

// forget drops attempts from the front that have ended in some way.
func (q *dialQueue) forget() {
	for len(q.waiting) > 0 && !q.waiting[0].open() {
		q.waiting[0] = dialing{}
		q.waiting = q.waiting[1:]
	}
	if len(q.waiting) == 0 {
		q.waiting = nil
	}
}

// expire ends attempts that took too long.
func (q *dialQueue) expire(now time.Duration) {
	for q.forget(); len(q.waiting) > 0 && q.waiting[0].due <= now; q.forget() {
		late := q.waiting[0]
		q.waiting[0] = dialing{}
		q.waiting = q.waiting[1:]
		late.c.timedOut()
	}
}

// open says whether the attempt is still under way.
func (d *dialing) open() bool {
	return d.c != nil && !d.c.over && !d.c.connected && d.c.dials == d.nth
}
