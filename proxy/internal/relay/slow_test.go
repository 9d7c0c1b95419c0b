package relay

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// fill writes until nothing is taken for a while, and returns how much was.
func fill(c *net.TCPConn, chunk []byte) (taken int) {
	for {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(chunk)
		taken += n
		if err != nil {
			_ = c.SetWriteDeadline(time.Time{})
			return taken
		}
	}
}

// conns looks at the relay's connections, each in its worker.
func (r *Relay) conns(look func(c *conn)) {
	for _, w := range r.workers {
		w.do(func() {
			for _, s := range w.slots {
				if c, ok := s.handler.(*conn); ok {
					look(c)
				}
			}
		})
	}
}

func (c *conn) holds() int {
	return len(c.up.held.rest) + c.up.piped + len(c.down.held.rest) + c.down.piped
}

func TestSlowReaderHoldsBoundedMemory(t *testing.T) {
	for _, splices := range []bool{true, false} { // not every kernel or sandbox lets one
		c := connectThrough(t, Options{Threads: 1})
		most := pipeSize
		if !splices {
			most = bufferSize
			c.r.conns(func(c *conn) { c.up.noSplice, c.down.noSplice = true, true })
		}
		other := dial(t, c.front)
		otherServer := accepted(t, c.backend)
		for _, way := range []struct{ from, to *net.TCPConn }{{c.client, c.server}, {c.server, c.client}} {
			chunk := make([]byte, 1<<20)
			for i := range chunk {
				chunk[i] = byte(i >> 8 * 31)
			}
			taken := fill(way.from, chunk)
			held := 0
			c.r.conns(func(c *conn) {
				held += c.holds()
				if splices && c.holds() > 0 && c.up.chunk+c.down.chunk >= 2*pipeSize {
					t.Errorf("the next splices take %d and %d bytes although a reader is slow", c.up.chunk, c.down.chunk)
				}
			})
			if held == 0 || held > most {
				t.Errorf("the relay holds %d bytes of the %d that were taken, want at most %d", held, taken, most)
			}
			say(t, other, otherServer, bytes.Repeat([]byte("!"), 2*bufferSize)) // goes through the worker's buffer
			got := make([]byte, len(chunk))
			for ; taken > 0; taken -= len(got) {
				got = got[:min(taken, len(got))]
				if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, chunk[:len(got)]) {
					t.Fatalf("with %d to come: other bytes than were sent, %v", taken, err)
				}
			}
		}
		// A reset does not wait for the reader.
		fill(c.client, make([]byte, 1<<20))
		reset(c.client)
		c.flow.ended(t)
		expectReset(t, c.server)
	}
}
