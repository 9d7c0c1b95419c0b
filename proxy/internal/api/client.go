package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"syscall"
)

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Client asks a proxy through its socket. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the proxy at socket. Nothing is dialled before the first call.
func NewClient(socket string, dial DialFunc) *Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, "unix", socket)
	}}
	return &Client{socket: socket, http: &http.Client{Transport: transport}}
}

// Close ends the connections that are kept for the next call.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns what `tclb status` shows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/api/v1/status")
}

// Services returns every service, sorted by name.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return get[[]Service](ctx, c, "/api/v1/services")
}

// Service returns the service of that name.
func (c *Client) Service(ctx context.Context, name string) (Service, error) {
	return get[Service](ctx, c, "/api/v1/services/"+url.PathEscape(name))
}

// Backends returns the backends of a service, or of all if the name is empty, by service,
// address and port.
func (c *Client) Backends(ctx context.Context, service string) ([]Backend, error) {
	return get[[]Backend](ctx, c, "/api/v1/backends"+query("service", service))
}

// Endpoints returns the attached containers, by container id and interface name.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return get[[]Endpoint](ctx, c, "/api/v1/endpoints")
}

// Nodes returns the nodes by name.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return get[[]Node](ctx, c, "/api/v1/nodes")
}

// Ping sends one probe to a node through the tunnel and waits for its answer, up to a second.
func (c *Client) Ping(ctx context.Context, node string) (Pong, error) {
	var out Pong
	err := c.do(ctx, http.MethodPost, "/api/v1/nodes/"+url.PathEscape(node)+"/ping", nil, &out)
	return out, err
}

// Flows returns the connection table, of one service if the name is not empty, by protocol,
// client, VIP and backend.
func (c *Client) Flows(ctx context.Context, service string) ([]Flow, error) {
	out, err := get[[]Flow](ctx, c, "/api/v1/conntrack"+query("service", service))
	slices.SortFunc(out, compareFlows)
	return out, err
}

func compareFlows(a, b Flow) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Client.Compare(b.Client),
		a.VIP.Compare(b.VIP), a.Backend.Compare(b.Backend))
}

// Apply writes the services of a services file; file is what findings call it.
func (c *Client) Apply(ctx context.Context, file string, content []byte) (Applied, error) {
	var out Applied
	err := c.do(ctx, http.MethodPut, "/api/v1/services"+query("file", file), content, &out)
	return out, err
}

// DeleteService deletes a service that Apply wrote.
func (c *Client) DeleteService(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/api/v1/services/"+url.PathEscape(name), nil, nil)
}

// Override changes one backend of a service over its configuration.
func (c *Client) Override(ctx context.Context, service string, o Override) (Overridden, error) {
	var out Overridden
	body, err := json.Marshal(o)
	if err != nil {
		return out, fmt.Errorf("encode override: %w", err)
	}
	err = c.do(ctx, http.MethodPatch, "/api/v1/services/"+url.PathEscape(service)+"/backends", body, &out)
	return out, err
}

// Flush empties the connection table, of one service if the name is not empty.
func (c *Client) Flush(ctx context.Context, service string) (Flushed, error) {
	var out Flushed
	err := c.do(ctx, http.MethodDelete, "/api/v1/conntrack"+query("service", service), nil, &out)
	return out, err
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	err := c.do(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// do sends one request and decodes the answer into out, or into an *Error.
func (c *Client) do(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://tclb"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return readError(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("read the proxy's answer at %s: %w", c.socket, err)
	}
	return nil
}

// explain turns a failed connection into what the user can do about it.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTSOCK):
		return &NoProxyError{Socket: c.socket, Cause: err}
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("open %s, which is its owner's alone: %w", c.socket, os.ErrPermission)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // the made-up URL would only mislead
	}
	return fmt.Errorf("ask the proxy at %s: %w", c.socket, err)
}

// readError decodes a refusal; what is no JSON of ours is shown as it is, shortened.
func readError(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read the proxy's answer: %w", err)
	}
	out := &Error{}
	if json.Unmarshal(text, out) != nil || out.Message == "" {
		out.Message = fmt.Sprintf("the proxy answered %s: %.200s", resp.Status, oneLine(string(text)))
	}
	out.Status = resp.StatusCode
	return out
}

// query returns "?key=value", or nothing for an empty value.
func query(key, value string) string {
	if value == "" {
		return ""
	}
	return "?" + url.Values{key: {value}}.Encode()
}
