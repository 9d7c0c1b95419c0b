package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// server is a real etcd, on ports of its own.
type server struct {
	t       testing.TB
	dir     string
	client  string // URL
	peer    string
	options []string
	out     bytes.Buffer
	cmd     *exec.Cmd
	exited  chan struct{}
}

// needServer returns etcd's path. `make test` installs it; without it, as in `make unit` on a fresh machine,
// the tests with a real etcd cannot run.
func needServer(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("etcd is missing: .ci/deps test installs it")
		}
		t.Skip("etcd is missing: .ci/deps test installs it")
	}
	return path
}

// newServer starts an etcd that ends with the test.
func newServer(t testing.TB, options ...string) *server {
	t.Helper()
	return newSecureServer(t, "http", options...)
}

func newSecureServer(t testing.TB, scheme string, options ...string) *server {
	t.Helper()
	needServer(t)
	s := &server{t: t, dir: t.TempDir(), options: options}
	s.client, s.peer = scheme+"://"+freePort(t), "http://"+freePort(t)
	s.start()
	t.Cleanup(s.kill)
	return s
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the server, on what it had on disk, and waits until it answers.
func (s *server) start() {
	s.t.Helper()
	args := append([]string{
		"--data-dir", filepath.Join(s.dir, "data"), "--name", "one", "--initial-cluster", "one=" + s.peer,
		"--listen-client-urls", s.client, "--advertise-client-urls", s.client,
		"--listen-peer-urls", s.peer, "--initial-advertise-peer-urls", s.peer, "--log-level", "error",
	}, s.options...)
	s.cmd = exec.Command(needServer(s.t), args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	s.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	address := s.client[strings.Index(s.client, "//")+2:]
	eventually(s.t, "etcd listens", func() bool {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func (s *server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// raw is a client without any of our code between.
func (s *server) raw() *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.client}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// get returns a key's value, "" if it is not there.
func (s *server) get(c *clientv3.Client, key string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := c.Get(ctx, key)
	if err != nil {
		s.t.Fatalf("get %s: %v\n%s", key, err, &s.out)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

func (s *server) put(c *clientv3.Client, key, value string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		s.t.Fatalf("put %s: %v\n%s", key, err, &s.out)
	}
}

// mortal connects as long as the node is not dead.
func mortal(dead *atomic.Bool, etcd config.Etcd) func(context.Context) (kv, error) {
	return func(ctx context.Context) (kv, error) {
		if dead.Load() {
			return nil, errDown
		}
		return dialEtcd(ctx, etcd)
	}
}

// node returns a node that uses the server.
func (s *server) node(name string, i int) *node {
	n := newNode(s.t, name, i, nil)
	n.etcd.Endpoints = []string{s.client}
	n.etcd.LeaseTTL = 2 * time.Second
	n.dial = func(ctx context.Context) (kv, error) { return mortal(&n.dead, n.etcd)(ctx) }
	return n
}

func (n *node) connected() {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("%s is connected\n%s", n.name, n.log), func() bool { return n.source.Status().Connected })
}
