package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// Bounds of what is read of an answer.
const (
	maxHead = 64 << 10
	maxBody = 4 << 10 // read, so that servers can finish, and thrown away
	maxInfo = 5       // interim answers (1xx) before the final one
)

// Probe asks a backend once, over the network of the calling process, until ctx ends. Tests may
// give a Checker another.
func Probe(ctx context.Context, at netip.AddrPort, check lb.HealthCheck) Outcome {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return outcome(ctx, "no connection", check, err)
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		// Closed by a reset: at thousands of probes a second, connections that wait out their last
		// minute would fill the node's table of them.
		_ = tcp.SetLinger(0)
	}
	if check.Type != "http" {
		return Outcome{}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return ask(ctx, conn, at, check)
}

// ask makes one request. The connection is closed when ctx ends.
func ask(ctx context.Context, conn net.Conn, at netip.AddrPort, check lb.HealthCheck) Outcome {
	host := at.String()
	if at.Port() == 80 {
		host = hostOf(at.Addr())
	}
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: tclb-health-check\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		check.Path, host)
	if err != nil {
		return outcome(ctx, "no answer", check, err)
	}
	in := bufio.NewReader(io.LimitReader(conn, maxHead))
	for range maxInfo {
		answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
		if err != nil {
			return outcome(ctx, "no answer", check, err)
		}
		if status := answer.StatusCode; status >= 200 || status == http.StatusSwitchingProtocols || status == check.Expect {
			_, _ = io.CopyN(io.Discard, answer.Body, maxBody)
			_ = answer.Body.Close()
			return judgeStatus(status, check.Expect)
		}
	}
	return Outcome{Failure, "interim answers only"}
}

func hostOf(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// judgeStatus compares a status with the one expected, or with any that is no error.
func judgeStatus(status, expect int) Outcome {
	switch {
	case expect != 0 && status != expect:
		return Outcome{Failure, fmt.Sprintf("status %d, want %d", status, expect)}
	case expect == 0 && (status < 200 || status > 399):
		return Outcome{Failure, "status " + strconv.Itoa(status)}
	}
	return Outcome{}
}

// ours are errors that say nothing about the backend: this node ran out of something.
var ours = []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL}

// outcome says what an error means. what is what did not come about.
func outcome(ctx context.Context, what string, check lb.HealthCheck, err error) Outcome {
	var timeout net.Error
	var errno syscall.Errno
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return Outcome{Unknown, "stopped"}
	case slices.ContainsFunc(ours, func(e error) bool { return errors.Is(err, e) }):
		return Outcome{Unknown, err.Error()}
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Outcome{Timeout, fmt.Sprintf("%s within %s", what, check.Timeout)}
	case errors.As(err, &errno):
		return Outcome{Failure, errno.Error()}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Outcome{Failure, what + ": connection closed"}
	}
	return Outcome{Failure, what + ": " + err.Error()}
}
