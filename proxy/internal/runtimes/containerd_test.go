package runtimes

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// store is containerd's side: labels by namespace/id.
type store struct {
	containers.UnimplementedContainersServer
	namespaces.UnimplementedNamespacesServer
	names []string
	have  map[string]map[string]string
	err   error
}

// containersOf and namespacesOf keep the two services' methods of one name apart.
type (
	containersOf struct {
		containers.UnimplementedContainersServer
		*store
	}
	namespacesOf struct {
		namespaces.UnimplementedNamespacesServer
		*store
	}
)

func (s containersOf) Get(ctx context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	if s.err != nil {
		return nil, s.err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	labels, ok := s.have[md.Get("containerd-namespace")[0]+"/"+r.ID]
	if !ok {
		return nil, status.Error(codes.NotFound, "not found")
	}
	return &containers.GetContainerResponse{Container: &containers.Container{ID: r.ID, Labels: labels}}, nil
}

func (s namespacesOf) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	out := &namespaces.ListNamespacesResponse{}
	for _, n := range s.names {
		out.Namespaces = append(out.Namespaces, &namespaces.Namespace{Name: n})
	}
	return out, nil
}

// containerdAt serves a store at a socket and returns the path.
func containerdAt(t *testing.T, s *store) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	containers.RegisterContainersServer(server, containersOf{store: s})
	namespaces.RegisterNamespacesServer(server, namespacesOf{store: s})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return socket
}

func TestContainerdIsAskedInTheRightNamespace(t *testing.T) {
	s := &store{names: []string{"default", "my-team", "k8s.io", "my"}, have: map[string]map[string]string{
		"default/c1":     {"tclb.services": "web"},
		"my-team/a-b":    {"tclb.services": "api"},
		"k8s.io/" + id1:  {"tclb.services": "pod"},
		"default/" + id2: {"tclb.services": "nerdctl"},
		"default/bare":   nil,
	}}
	ids := []string{"default-c1", "my-team-a-b", id1, "default-" + id2, "default-bare", "default-gone", "5c2dd9f8-1b1d-4a63-9a0e-2f6f8a1c1f11"}
	got, err := newContainerd(containerdAt(t, s)).labels(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{
		"default-c1": {"tclb.services": "web"}, "my-team-a-b": {"tclb.services": "api"}, id1: {"tclb.services": "pod"},
		"default-" + id2: {"tclb.services": "nerdctl"}, "default-bare": nil,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	s.err = status.Error(codes.Unavailable, "shutting down")
	if got, err := newContainerd(containerdAt(t, s)).labels(t.Context(), ids); err == nil {
		t.Errorf("got %v", got)
	}
}
