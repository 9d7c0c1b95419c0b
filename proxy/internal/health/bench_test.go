package health

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serveEnv makes the test binary a server for a benchmark, whose own time is to be measured alone.
const serveEnv = "TCLB_HEALTH_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		os.Exit(1)
	}
	_, _ = io.WriteString(os.Stdout, l.Addr().String()+"\n")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
		os.Exit(0)
	}()
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	for request := make([]byte, 4096); ; {
		if conn, err := l.Accept(); err == nil {
			if n, _ := conn.Read(request); n > 0 {
				_, _ = conn.Write(answer)
			}
			conn.Close()
		}
	}
}

// server starts another process that answers on every loopback address, and returns its port.
func server(b *testing.B) uint16 {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	at, err := netip.ParseAddrPort(strings.TrimSpace(line))
	if err != nil {
		b.Fatal(err)
	}
	return at.Port()
}

// usage returns the processor time that this process has used.
func usage(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBackends is what it costs to probe 5,000 backends every 2 seconds: those that answer, and in
// "dark" those of which one in ten swallows packets.
func BenchmarkBackends(b *testing.B) {
	const n = 5000
	port, nobody := server(b), fullListener(b).Port()
	for _, bm := range []struct{ kind, dark string }{{"tcp", ""}, {"http", ""}, {"tcp", "/dark"}} {
		b.Run(bm.kind+bm.dark, func(b *testing.B) {
			all := make([]Target, n)
			for i := range all {
				all[i] = Target{Port: port, Backend: Backend{Address: netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})}}
				if bm.dark != "" && i%10 == 0 {
					all[i].Port = nobody
				}
			}
			c := New(Options{Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(b.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = c.Run(ctx) })
			check := check
			check.Type, check.Path = bm.kind, "/"
			c.SetService("web", check, all)
			time.Sleep(2 * every)
			measure(b, c)
			cancel()
			running.Wait()
		})
	}
}

// measure reports what happens in b.N seconds.
func measure(b *testing.B, c *Checker) {
	b.Helper()
	before, used, most := c.Counts("web"), usage(b), 0
	b.ResetTimer()
	for range b.N {
		for range 100 {
			time.Sleep(10 * time.Millisecond)
			most = max(most, runtime.NumGoroutine())
		}
	}
	seconds := b.Elapsed().Seconds()
	after := c.Counts("web")
	b.ReportMetric(float64(usage(b)-used)/1e6/seconds, "cpu-ms/s")
	b.ReportMetric(float64(after.Success+after.Failure+after.Timeout-before.Success-before.Failure-before.Timeout)/seconds, "probes/s")
	b.ReportMetric(float64(after.Failure-before.Failure)/seconds, "failures/s")
	b.ReportMetric(float64(after.Timeout-before.Timeout)/seconds, "timeouts/s")
	b.ReportMetric(float64(most), "goroutines")
	if after == before {
		b.Error("nothing was probed")
	}
}
