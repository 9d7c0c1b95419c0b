package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// SocketName is the socket's file name in the run directory.
const SocketName = "tclb.sock"

// maxSocketPath is the kernel's limit for the name of a unix socket (sun_path less its NUL).
const maxSocketPath = 107

// stopTimeout bounds how long a stopping proxy waits for requests that are being answered.
const stopTimeout = 2 * time.Second

// ListenUnix listens on the socket, which only its owner can open. The caller holds the run
// directory's proxy lock: a socket that is there belongs to a proxy that is gone, and is replaced.
func ListenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: the name is longer than the %d bytes that a socket can have: choose a shorter --run-dir", path, maxSocketPath)
	}
	if err := removeSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err // names verb and path
	}
	// The run directory is closed to others, so nobody comes between these two.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeSocket removes what a dead proxy left, and refuses to remove anything but a socket.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("listen on %s: a file that is no socket is in the way: remove it or choose another --run-dir", path)
	}
	return os.Remove(path)
}

// ListenTCP listens on the address of the key `listen`.
func ListenTCP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: address already in use: stop what uses it, or set `listen` in tclb.yaml to another address or to \"\" (off)", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this host does not have that address: correct `listen` in tclb.yaml", address)
	}
	return l, err
}

// Serve answers on the unix socket and, if tcp is not nil, read-only on that, until ctx ends. It
// closes both listeners, which removes the socket, and returns the first error that is not a stop.
func (s *Server) Serve(ctx context.Context, unix, tcp net.Listener) error {
	servers := []*http.Server{s.newServer(s.Handler())}
	listeners := []net.Listener{unix}
	if tcp != nil {
		servers = append(servers, s.newServer(s.ReadOnlyHandler()))
		listeners = append(listeners, tcp)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	errs := make([]error, len(servers))
	var running sync.WaitGroup
	for i, server := range servers {
		running.Go(func() {
			defer cancel() // one listener lost is no half service
			if err := server.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				errs[i] = fmt.Errorf("serve %s: %w", listeners[i].Addr(), err)
			}
		})
	}
	<-ctx.Done()
	for _, server := range servers {
		stop(server)
	}
	running.Wait()
	return errors.Join(errs...)
}

// newServer bounds what a slow or hostile client can hold. There is no write timeout: a long
// conntrack listing takes as long as its reader does.
func (s *Server) newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// stop lets running requests end, but not for long.
func stop(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		_ = server.Close()
	}
}
