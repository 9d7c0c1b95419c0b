package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// patience is the timeout of probes that must not need it.
const patience = 5 * time.Second

// listen serves connections until the test ends, and returns where.
func listen(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func run(t *testing.T, at netip.AddrPort, check lb.HealthCheck) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), check.Timeout)
	defer cancel()
	return Probe(ctx, at, check)
}

func TestTCPProbe(t *testing.T) {
	tcp := lb.HealthCheck{Type: "tcp", Timeout: patience}
	closed := make(chan error, 1)
	at := listen(t, func(c net.Conn) {
		_, err := c.Read(make([]byte, 1))
		closed <- err
	})
	if o := run(t, at, tcp); o != (Outcome{}) {
		t.Errorf("listening: %+v", o)
	}
	if err := <-closed; err == nil {
		t.Error("the probe sent something")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	if o := run(t, nobody, tcp); o != (Outcome{Failure, "connection refused"}) {
		t.Errorf("not listening: %+v", o)
	}
}

func TestTCPProbeTimesOut(t *testing.T) {
	// A listener whose queue is full swallows SYNs.
	at := fullListener(t)
	began := time.Now()
	o := run(t, at, lb.HealthCheck{Type: "tcp", Timeout: 100 * time.Millisecond})
	if o != (Outcome{Timeout, "no connection within 100ms"}) {
		t.Errorf("silent: %+v", o)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestHTTPProbe(t *testing.T) {
	var followed atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "" || r.Host != r.Context().Value(http.LocalAddrContextKey).(net.Addr).String() || r.URL.RawQuery != "a=b%20c" || !r.Close {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/target", http.StatusFound) })
	mux.HandleFunc("/target", func(http.ResponseWriter, *http.Request) { followed.Store(true) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/hint", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for line := strings.Repeat("x", 1<<16); ; {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	for _, tt := range []struct {
		path   string
		expect int
		want   Outcome
	}{
		{"/ok?a=b%20c", 0, Outcome{}},
		{"/ok?a=b%20c", 200, Outcome{}},
		{"/ok?a=b%20c", 204, Outcome{Failure, "status 200, want 204"}},
		{"/moved", 0, Outcome{}},
		{"/moved", 302, Outcome{}},
		{"/moved", 200, Outcome{Failure, "status 302, want 200"}},
		{"/down", 0, Outcome{Failure, "status 503"}},
		{"/down", 503, Outcome{}},
		{"/missing", 0, Outcome{Failure, "status 404"}},
		{"/hint", 204, Outcome{}},
		{"/endless", 0, Outcome{}},
	} {
		if o := run(t, at, lb.HealthCheck{Type: "http", Path: tt.path, Expect: tt.expect, Timeout: patience}); o != tt.want {
			t.Errorf("%s, expect %d: %+v, want %+v", tt.path, tt.expect, o, tt.want)
		}
	}
	if followed.Load() {
		t.Error("a redirect was followed")
	}
}

func TestHTTPProbeOfWhatSpeaksSomethingElse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(net.Conn)
		want   Result
		reason string
	}{
		{"closes", func(net.Conn) {}, Failure, ""},
		{"closes after the request", func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)) }, Failure, "no answer: connection closed"},
		{"speaks first", func(c net.Conn) {
			_, _ = fmt.Fprint(c, "220 mail.example ESMTP\r\n")
			_, _ = c.Read(make([]byte, 4096))
		}, Failure, "no answer: "},
		{"endless head", func(c net.Conn) {
			_, _ = fmt.Fprint(c, "HTTP/1.1 200 OK\r\nX: ")
			for {
				if _, err := fmt.Fprint(c, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		}, Failure, "no answer: "},
		{"interim answers only", func(c net.Conn) {
			for {
				if _, err := fmt.Fprint(c, "HTTP/1.1 102 Processing\r\n\r\n"); err != nil {
					return
				}
			}
		}, Failure, "interim answers only"},
		{"silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, Timeout, "no answer within 300ms"},
		{"body that hangs", func(c net.Conn) {
			_, _ = fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
			_, _ = io.Copy(io.Discard, c)
		}, Success, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := run(t, listen(t, tt.answer), lb.HealthCheck{Type: "http", Path: "/", Timeout: 300 * time.Millisecond})
			if o.Result != tt.want || !strings.HasPrefix(o.Reason, tt.reason) {
				t.Errorf("%+v, want result %d and reason %q", o, tt.want, tt.reason)
			}
		})
	}
}

func TestProbeOfARemovedBackendEndsAtOnce(t *testing.T) {
	at := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	if o := Probe(ctx, at, lb.HealthCheck{Type: "http", Path: "/", Timeout: patience}); o.Result != Unknown {
		t.Errorf("%+v, want a result that says nothing", o)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("took %s", took)
	}
}

// fullListener returns where somebody listens, on every loopback address, but accepts nothing and has
// no room in the queue.
func fullListener(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for range 2 { // the queue of 0 has room for one; the next is dropped
		if conn, err := net.DialTimeout("tcp", at.String(), 50*time.Millisecond); err == nil {
			t.Cleanup(func() { conn.Close() })
		}
	}
	return at
}
