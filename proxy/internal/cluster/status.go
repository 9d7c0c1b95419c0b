package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Status is how the connection to etcd stands.
type Status struct {
	Endpoints []string
	Connected bool
	Since     time.Time
	Error     string // why it is not connected, one line
	Problems  []string
	Nodes     int // others that are there
	Lost      int // others whose lease has ended within a day
}

// Status returns how the connection stands, and what is wrong with what etcd holds, a line each.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.status
	for _, what := range slices.Sorted(maps.Keys(s.said)) {
		out.Problems = append(out.Problems, s.said[what])
	}
	for _, n := range s.mirror.known(s.now()) {
		if n.Alive {
			out.Nodes++
		} else {
			out.Lost++
		}
	}
	return out
}

// note puts a problem into the log, once, and into the status. s.mu is held.
func (s *Source) note(what, text string) {
	if s.said[what] != text {
		s.Log.Warn(text)
		s.said[what] = text
	}
}

// fine says that a problem is none any more.
func (s *Source) fine(what string) { delete(s.said, what) }

// complain notes what in etcd does not count. s.mu is held.
func (s *Source) complain(now time.Time) {
	const key = "key "
	for what := range s.said {
		if k, ok := strings.CutPrefix(what, key); ok && s.mirror.foreign[k] == "" {
			s.fine(what)
		}
	}
	for k, reason := range s.mirror.foreign {
		s.note(key+k, fmt.Sprintf("key %s in etcd is ignored: %s", plain(s.Etcd.Prefix+layout+k), oneLine(reason)))
	}
	at := make(map[netip.Addr]string)
	me := s.Self()
	at[me.Address] = s.self
	for _, n := range s.mirror.known(now) {
		other, taken := at[n.Address]
		if n.Alive && n.Address.IsValid() && taken {
			s.note("address "+n.Name, fmt.Sprintf("nodes %s and %s have the same address %s: set node.address on one of them", other, n.Name, n.Address))
		} else {
			s.fine("address " + n.Name)
		}
		at[n.Address] = n.Name
	}
}

// explain says in one line why etcd cannot be used. The client hides what became of a connection behind
// a time limit, so that each server is asked.
func (s *Source) explain(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "the session ended"
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Sprintf("wrong etcd.user or password in etcd.passwordFile: %s", oneLine(err.Error()))
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "etcd asks for a login: set etcd.user and etcd.passwordFile"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Sprintf("user %s may not read and write below %s: grant it a role for that prefix", s.Etcd.User, s.Etcd.Prefix)
	}
	if errors.Is(err, errUnreachable) {
		return strings.TrimPrefix(oneLine(err.Error()), errUnreachable.Error()+": ")
	}
	if why := s.reach(ctx); why != nil {
		return s.explain(ctx, why)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer from " + strings.Join(s.Etcd.Endpoints, ", ") + ": etcd hangs, or has no majority"
	}
	return oneLine(err.Error())
}

// errUnreachable says that there is no way to any server; why, by server, follows.
var errUnreachable = errors.New("no server can be reached")

// reach returns nil if one of the servers can be connected to. The client would try for seconds, and not
// say why it failed.
func (s *Source) reach(ctx context.Context) error {
	servers := urls(s.Etcd)
	answers := make(chan error, len(servers))
	for _, u := range servers {
		go func() {
			err := s.ask(ctx, u)
			if err != nil {
				err = fmt.Errorf("%s: %w", u, err)
			}
			answers <- err
		}()
	}
	var errs []string
	for range servers {
		err := <-answers
		if err == nil {
			return nil
		}
		errs = append(errs, err.Error())
	}
	if len(errs) == 0 {
		return nil // nobody to ask
	}
	slices.Sort(errs)
	return fmt.Errorf("%w: %s", errUnreachable, strings.Join(errs, "; "))
}

// ask connects to a server, and returns why that is not possible.
func (s *Source) ask(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}
	cfg, err := tlsConfig(s.Etcd)
	if err != nil {
		return err
	}
	cfg.ServerName, cfg.NextProtos = u.Hostname(), []string{"h2"}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return err
	}
	// A server that refuses the client's certificate says so only when something is read.
	_ = secure.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := secure.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// plain returns a key as it is if it is harmless in a line of text, else quoted.
func plain(key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(key)
	}
	return key
}

// oneLine keeps a reason on its line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func sameNodes(a, b []KnownNode) bool {
	return slices.EqualFunc(a, b, func(x, y KnownNode) bool { return reflect.DeepEqual(x, y) })
}
