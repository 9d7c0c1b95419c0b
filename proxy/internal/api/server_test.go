package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
)

func newServer(v *apitest.View, m *apitest.Maps) *api.Server {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics\n") })
	return api.New(api.Options{
		View: v, Datapath: m, Metrics: metrics, Version: "v1.2.3",
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return apitest.Now },
	})
}

// ask sends one request and returns status and body.
func ask(h http.Handler, method, path, body string) (int, string) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	return rec.Code, rec.Body.String()
}

// shortDir is a directory whose name leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tclb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestReadOnlyListenerOnlyReads(t *testing.T) {
	v := apitest.NewView()
	server := newServer(v, apitest.NewMaps())
	reads := []string{
		"/", "/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/services", "/api/v1/services/web", "/api/v1/backends",
		"/api/v1/endpoints", "/api/v1/nodes", "/api/v1/conntrack",
	}
	for _, path := range reads {
		if status, body := ask(server.ReadOnlyHandler(), http.MethodGet, path, ""); status != http.StatusOK || body == "" {
			t.Errorf("GET %s: %d %q", path, status, body)
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "get", "BREW"} {
			if status, _ := ask(server.ReadOnlyHandler(), method, path, "{}"); status != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d, want 405", method, path, status)
			}
		}
	}
	if calls := v.Calls(); len(calls) != 0 {
		t.Errorf("something was changed: %q", calls)
	}
}

func TestErrorsHaveTheirStatus(t *testing.T) {
	h := newServer(apitest.NewView(), apitest.NewMaps()).Handler()
	cases := []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/nope", "", 404},
		{"GET", "/api/v1/services/nope", "", 404},
		{"GET", "/api/v1/services/late", "", 503},
		{"GET", "/api/v1/backends?service=nope", "", 404},
		{"GET", "/api/v1/conntrack?service=nope", "", 404},
		{"POST", "/api/v1/status", "", 405},
		{"DELETE", "/api/v1/services/web", "", 409},
		{"DELETE", "/api/v1/services/nope", "", 404},
		{"PATCH", "/api/v1/services/web/backends", "", 400},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"web-1"}`, 400},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"web-1","drain":true,"weight":"1"}`, 400},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"web-1","weight":"1001"}`, 400},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"web-1","colour":"red"}`, 400},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"` + strings.Repeat("x", 70000) + `"}`, 413},
		{"PATCH", "/api/v1/services/web/backends", `{"address":"nope","drain":true}`, 404},
		{"PUT", "/api/v1/services", strings.Repeat("x", 8<<20+1), 413},
	}
	for _, c := range cases {
		status, body := ask(h, c.method, c.path, c.body)
		if status != c.want {
			t.Errorf("%s %s %.80s: %d %s, want %d", c.method, c.path, c.body, status, body, c.want)
		}
		if status != 405 && !strings.HasPrefix(body, `{"error":"`) {
			t.Errorf("%s %s: %q is no error in JSON", c.method, c.path, body)
		}
	}
}

func TestReadinessFollowsTheFirstReconcile(t *testing.T) {
	v := apitest.NewView()
	h := newServer(v, apitest.NewMaps()).ReadOnlyHandler()
	v.StatusValue.Ready = false
	if status, _ := ask(h, "GET", "/readyz", ""); status != http.StatusServiceUnavailable {
		t.Errorf("before: %d", status)
	}
	if status, _ := ask(h, "GET", "/healthz", ""); status != http.StatusOK {
		t.Errorf("a node that is not ready is healthy all the same: %d", status)
	}
	v.StatusValue.Ready = true
	if status, _ := ask(h, "GET", "/readyz", ""); status != http.StatusOK {
		t.Errorf("after: %d", status)
	}
}

func TestPageIsSelfContained(t *testing.T) {
	v := apitest.NewView()
	v.NodeValue.Name = "<script>alert(1)</script>"
	rec := httptest.NewRecorder()
	newServer(v, apitest.NewMaps()).ReadOnlyHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	body := rec.Body.String()
	for _, bad := range []string{"<script", "http://", "https://", "src=", "href=", "@import", "url("} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, good := range []string{"203.0.113.7", "draining", "map is full", "198.51.100.10"} {
		if !strings.Contains(body, good) {
			t.Errorf("the page does not have %q", good)
		}
	}
	if got := rec.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'") {
		t.Errorf("content security policy %q", got)
	}
}

func TestBrokenConntrackListingIsNoShortOne(t *testing.T) {
	m := apitest.NewMaps()
	m.PairsErr = errors.New("map is gone")
	server := httptest.NewServer(newServer(apitest.NewView(), m).Handler())
	defer server.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}
	if flows, err := api.NewClient("test.sock", dial).Flows(t.Context(), ""); err == nil {
		t.Errorf("got %d flows and no error", len(flows))
	}
	none := &apitest.Maps{PairsErr: m.PairsErr}
	if status, body := ask(newServer(apitest.NewView(), none).Handler(), "GET", "/api/v1/conntrack", ""); status != 500 || !strings.Contains(body, "map is gone") {
		t.Errorf("an error before the first row: %d %s", status, body)
	}
}

func TestSocketIsTheOwnersAloneAndReplacesADeadOne(t *testing.T) {
	path := filepath.Join(shortDir(t), api.SocketName)
	dead, err := api.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	// Killed: nobody accepts, and the file stays.
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = dead.Close()
	_, err = api.NewClient(path, new(net.Dialer).DialContext).Status(t.Context())
	var none *api.NoProxyError
	if !errors.As(err, &none) {
		t.Errorf("dead socket: %v", err)
	}
	again, err := api.ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays after a stop: %v", err)
	}
}

func TestSocketReplacesNoFile(t *testing.T) {
	path := filepath.Join(shortDir(t), api.SocketName)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ListenUnix(path); err == nil || !strings.Contains(err.Error(), "no socket is in the way") {
		t.Errorf("error %v", err)
	}
	if _, err := api.ListenUnix("/" + strings.Repeat("x", 107)); err == nil || !strings.Contains(err.Error(), "shorter --run-dir") {
		t.Errorf("error %v", err)
	}
}

func TestAddressInUseSaysWhatToDo(t *testing.T) {
	first, err := api.ListenTCP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	_, err = api.ListenTCP(first.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "`listen` in tclb.yaml") {
		t.Errorf("error %v", err)
	}
}

func TestServeStopsAndReportsALostListener(t *testing.T) {
	for _, lost := range []bool{false, true} {
		unix, err := api.ListenUnix(filepath.Join(shortDir(t), api.SocketName))
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := api.ListenTCP("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- newServer(apitest.NewView(), apitest.NewMaps()).Serve(ctx, unix, tcp) }()
		resp, err := http.Get("http://" + tcp.Addr().String() + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !bytes.Equal(body, []byte("ok\n")) {
			t.Errorf("healthz: %q", body)
		}
		if lost {
			_ = tcp.Close()
		} else {
			cancel()
		}
		if err := <-done; (err != nil) != lost {
			t.Errorf("listener lost %t: error %v", lost, err)
		}
		cancel()
	}
}
