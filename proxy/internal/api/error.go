package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Error is the server's refusal as a client sees it.
type Error struct {
	Status   int              `json:"-"` // HTTP status
	Message  string           `json:"error"`
	Findings []config.Finding `json:"findings,omitempty"`
}

// Error returns the server's message.
func (e *Error) Error() string { return e.Message }

// NoProxyError says that nobody answers at the socket.
type NoProxyError struct {
	Socket string
	Cause  error
}

// Error says what to do about it.
func (e *NoProxyError) Error() string {
	return fmt.Sprintf(`no proxy answers at %s: start it with "tclb proxy", or choose another with --run-dir`, e.Socket)
}

// Unwrap returns why the connection failed.
func (e *NoProxyError) Unwrap() error { return e.Cause }

// errInvalid marks requests that cannot be carried out as they are.
var errInvalid = errors.New("invalid request")

// errUnavailable marks requests that a retry may help.
var errUnavailable = errors.New("unavailable")

// errNoPath marks requests for what does not exist and never will.
var errNoPath = errors.New("no such path")

// statuses maps sentinels to HTTP, first match wins.
var statuses = []struct {
	is     error
	status int
}{
	{view.ErrNoService, http.StatusNotFound},
	{view.ErrNoBackend, http.StatusNotFound},
	{view.ErrNoNode, http.StatusNotFound},
	{view.ErrNoPing, http.StatusConflict},
	{errNoPath, http.StatusNotFound},
	{errInvalid, http.StatusBadRequest},
	{view.ErrForeign, http.StatusConflict},
	{errUnavailable, http.StatusServiceUnavailable},
	{view.ErrAway, http.StatusServiceUnavailable},
}

// describe turns an error into what goes over the wire.
func describe(err error) *Error {
	out := &Error{Status: http.StatusInternalServerError, Message: oneLine(err.Error())}
	var refused *view.InvalidError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &refused):
		out.Status, out.Findings = http.StatusUnprocessableEntity, refused.Findings
		return out
	case errors.As(err, &tooLarge):
		out.Status = http.StatusRequestEntityTooLarge
		out.Message = fmt.Sprintf("the request is larger than %d bytes: split it", tooLarge.Limit)
		return out
	}
	for _, s := range statuses {
		if errors.Is(err, s.is) {
			out.Status = s.status
			break
		}
	}
	return out
}

// oneLine keeps a joined error on the one line that the command line promises.
func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}

// writeError answers with err as JSON.
func writeError(w http.ResponseWriter, err error) {
	e := describe(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	// The status line is out: a failed write means that the client is gone.
	_ = json.NewEncoder(w).Encode(e)
}
