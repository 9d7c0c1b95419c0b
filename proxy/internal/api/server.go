// Package api is the proxy's way to the outside: HTTP with JSON on a unix socket for the command
// line, and the same without the verbs that change anything on a TCP address for monitoring.
//
// The types here are what `-o json` prints, so they follow the stability rule of the command
// line: fields are added, never renamed.
package api

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// maxBody is the largest request: a services file is at most this long.
const maxBody = 8 << 20

// maxOverride is the largest request to change a backend.
const maxOverride = 64 << 10

// A change is felt within settleTimeout; see Server.settle.
const (
	settleTimeout = time.Second
	settlePoll    = 5 * time.Millisecond
)

// maxFileName bounds the name that an applied file is called by in findings.
const maxFileName = 4096

// Datapath is what the server reads from the maps themselves; *datapath.Datapath is one.
type Datapath interface {
	Sizes() datapath.Sizes
	Frontends() (map[lb.Frontend]datapath.Frontend, error)
	Backends() (map[uint32]datapath.Backend, error)
	Service(id uint32) (datapath.Service, error)
	BackendStat(id uint32) datapath.BackendStat
	ReadRegion(r datapath.Region) ([]uint32, error)
	Rooms() (map[datapath.Room]datapath.RoomStat, error)
	Pairs(yield func(datapath.Pair) bool) error
}

// Options are what a Server works with. All fields but Now are required.
type Options struct {
	View     view.View
	Datapath Datapath
	Metrics  http.Handler // answers /metrics
	Version  string       // of the proxy
	Log      *slog.Logger
	Now      func() time.Time // default: time.Now
}

// Server answers for one proxy. Create it with New. It is safe for concurrent use.
type Server struct {
	view     view.View
	datapath Datapath
	metrics  http.Handler
	version  string
	log      *slog.Logger
	now      func() time.Time
}

// New returns a server. It listens nowhere: see Serve.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Server{view: o.View, datapath: o.Datapath, metrics: o.Metrics, version: o.Version, log: o.Log, now: o.Now}
}

// Handler returns what the unix socket serves: every verb.
func (s *Server) Handler() http.Handler {
	mux := s.reads()
	mux.HandleFunc("PUT /api/v1/services", s.apply)
	mux.HandleFunc("DELETE /api/v1/services/{name}", s.deleteService)
	mux.HandleFunc("PATCH /api/v1/services/{name}/backends", s.override)
	mux.HandleFunc("DELETE /api/v1/conntrack", s.flush)
	mux.HandleFunc("POST /api/v1/nodes/{name}/ping", s.ping)
	return mux
}

// ReadOnlyHandler returns what the TCP listener serves: GET and nothing else, whatever the path.
func (s *Server) ReadOnlyHandler() http.Handler {
	mux := s.reads()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusMethodNotAllowed)
			_ = json.NewEncoder(w).Encode(Error{Message: "this address is read-only: changes go through the proxy's socket"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// reads registers what both listeners serve. A new ServeMux each time, for the caller adds to it.
func (s *Server) reads() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /api/v1/status", s.status)
	mux.HandleFunc("GET /api/v1/services", s.services)
	mux.HandleFunc("GET /api/v1/services/{name}", s.service)
	mux.HandleFunc("GET /api/v1/backends", s.backends)
	mux.HandleFunc("GET /api/v1/endpoints", s.endpoints)
	mux.HandleFunc("GET /api/v1/nodes", s.nodes)
	mux.HandleFunc("GET /api/v1/conntrack", s.conntrack)
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, fmt.Errorf("%w: %q", errNoPath, r.URL.Path))
	})
	return mux
}

// healthz says that the process answers, and nothing more: restarting it would not help a node
// that is not ready.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "ok\n")
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if !s.view.Status().Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "not ready: the first reconcile is not complete\n")
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.nodeStatus()
	s.answer(w, r, st, err)
}

func (s *Server) services(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, s.serviceRows(), nil)
}

func (s *Server) service(w http.ResponseWriter, r *http.Request) {
	svc, err := s.serviceInMaps(r.PathValue("name"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	rows := s.backendRows(svc.Name)
	err = s.addShares(svc.ID, rows)
	s.answer(w, r, serviceRow(svc, rows), err)
}

func (s *Server) backends(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("service")
	if name != "" {
		if _, err := s.serviceByName(name); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	s.answer(w, r, s.backendRows(name), nil)
}

func (s *Server) endpoints(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, s.endpointRows(), nil)
}

func (s *Server) nodes(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, s.nodeRows(), nil)
}

// conntrack streams: a full table is tens of megabytes, and the proxy need not hold them. So the
// rows come unsorted, and an error in the middle can only break the connection.
func (s *Server) conntrack(w http.ResponseWriter, r *http.Request) {
	var only view.Service
	if name := r.URL.Query().Get("service"); name != "" {
		var err error
		if only, err = s.serviceInMaps(name); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	rows := rowWriter{out: bufio.NewWriterSize(w, 64<<10), separator: "["}
	rows.encoder = json.NewEncoder(rows.out)
	names := s.newFlowNames()
	w.Header().Set("Content-Type", "application/json")
	err := s.datapath.Pairs(func(p datapath.Pair) bool {
		return only.ID != 0 && p.Service != only.ID || rows.write(names.row(p)) == nil
	})
	switch {
	case err != nil && rows.separator == "[":
		s.fail(w, r, fmt.Errorf("read connection table: %w", err))
	case err != nil:
		s.log.Error("read connection table", "err", err)
		panic(http.ErrAbortHandler)
	default:
		rows.end()
	}
}

// rowWriter writes a JSON array element by element.
type rowWriter struct {
	out       *bufio.Writer
	encoder   *json.Encoder
	separator string // "[" before the first element
}

func (w *rowWriter) write(row any) error {
	if _, err := w.out.WriteString(w.separator); err != nil {
		return err
	}
	w.separator = ","
	return w.encoder.Encode(row)
}

// end closes the array. A client that is gone needs no error.
func (w *rowWriter) end() {
	if w.separator == "[" {
		_, _ = w.out.WriteString("[")
	}
	_, _ = w.out.WriteString("]\n")
	_ = w.out.Flush()
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.fail(w, r, fmt.Errorf("read request: %w", err))
		return
	}
	file := r.URL.Query().Get("file")
	if len(file) > maxFileName {
		file = file[:maxFileName]
	}
	names, err := s.view.Apply(r.Context(), cmp.Or(file, "request"), content)
	s.answer(w, r, Applied{Services: orEmpty(names)}, err)
}

func (s *Server) deleteService(w http.ResponseWriter, r *http.Request) {
	err := s.view.Delete(r.Context(), r.PathValue("name"))
	s.answer(w, r, struct{}{}, err)
}

func (s *Server) override(w http.ResponseWriter, r *http.Request) {
	var o Override
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOverride))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&o); err != nil {
		s.fail(w, r, fmt.Errorf("%w: %w", errInvalid, err))
		return
	}
	service := r.PathValue("name")
	// Found before the change: a backend that nothing uses any more may leave at once.
	done := Overridden{Addresses: s.addressesOf(service, o.Address)}
	if err := s.applyOverride(r.Context(), service, o); err != nil {
		s.fail(w, r, err)
		return
	}
	s.settle(r.Context())
	s.answer(w, r, done, nil)
}

// settle waits until packets feel what was just changed, so that the next command sees it. What
// the reconciler cannot write stays in its status: it is no reason to wait longer.
func (s *Server) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	poll := time.NewTicker(settlePoll)
	defer poll.Stop()
	for wanted := s.view.Status().Revision; s.view.Status().Applied < wanted; {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) applyOverride(ctx context.Context, service string, o Override) error {
	if (o.Drain == nil) == (o.Weight == "") {
		return fmt.Errorf("%w: want one of drain and weight", errInvalid)
	}
	if o.Drain != nil {
		return s.view.SetDrain(ctx, service, o.Address, *o.Drain)
	}
	weight, err := ParseWeight(o.Weight)
	if err != nil {
		return fmt.Errorf("%w: %w", errInvalid, err)
	}
	return s.view.SetWeight(ctx, service, o.Address, weight)
}

// DefaultWeight is the word that gives a backend the weight of its configuration back.
const DefaultWeight = "default"

// ParseWeight reads a weight as commands give it; nil stands for DefaultWeight.
func ParseWeight(s string) (*int, error) {
	if s == DefaultWeight {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > lb.MaxWeight {
		return nil, fmt.Errorf("weight %q: want 0 to %d or %q", s, lb.MaxWeight, DefaultWeight)
	}
	return &n, nil
}

func (s *Server) flush(w http.ResponseWriter, r *http.Request) {
	flushed, err := s.view.Flush(r.Context(), r.URL.Query().Get("service"))
	s.answer(w, r, Flushed{Pairs: flushed.Pairs, Affinities: flushed.Affinities}, err)
}

// answer writes v as JSON, or err.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// fail answers with err. Only the server's own troubles are logged: the client is told its own.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if describe(err).Status == http.StatusInternalServerError {
		s.log.Error("answer request", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	writeError(w, err)
}

// orEmpty makes nil lists [] in JSON, not null.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
