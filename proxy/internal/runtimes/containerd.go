package runtimes

import (
	"context"
	"fmt"
	"os"
	"strings"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	namespaces "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	// containerdNamespace is the metadata key that says which namespace a call is about.
	containerdNamespace = "containerd-namespace"
	// criNamespace holds the pods of CRI, whose CNI id is the sandbox's alone.
	criNamespace = "k8s.io"
)

// containerd asks containerd, which has an object with labels for the containers of ctr, nerdctl
// and CRI before their network is made. Reading it takes no lock.
type containerd struct {
	socket string
}

func newContainerd(socket string) *containerd {
	if socket == "" {
		socket = containerdSocket
	}
	return &containerd{socket}
}

func (*containerd) name() string { return "containerd" }

// mutable: `ctr containers label` changes labels of a running container.
func (*containerd) mutable() bool { return true }

// mine is what podman's namespaces do not rule out: ctr and nerdctl write NAMESPACE-ID, CRI an ID.
func (*containerd) mine(e registry.Endpoint) bool { return !(*podman)(nil).mine(e) }

// labels implements runtime.
func (c *containerd) labels(ctx context.Context, ids []string) (map[string]map[string]string, error) {
	if _, err := os.Stat(c.socket); err != nil {
		return nil, fmt.Errorf("ask containerd: no socket %s: %w", c.socket, errAbsent)
	}
	conn, err := grpc.NewClient("unix:"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("ask containerd at %s: %w", c.socket, err)
	}
	defer conn.Close()
	list, err := namespaces.NewNamespacesClient(conn).List(ctx, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask containerd at %s for namespaces: %w", c.socket, err)
	}
	client := containers.NewContainersClient(conn)
	out := make(map[string]map[string]string)
	for _, id := range ids {
		for _, n := range list.Namespaces {
			own, ok := idWithin(n.Name, id)
			if !ok {
				continue
			}
			in := metadata.AppendToOutgoingContext(ctx, containerdNamespace, n.Name)
			answer, err := client.Get(in, &containers.GetContainerRequest{ID: own})
			if status.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("ask containerd at %s for container %s: %w", c.socket, own, err)
			}
			out[id] = answer.Container.Labels
		}
	}
	return out, nil
}

// idWithin returns the id that a CNI container id stands for if it belongs to a namespace. Both can
// have hyphens, so only containerd knows where one ends.
func idWithin(namespace, id string) (string, bool) {
	if namespace == criNamespace && hexID.MatchString(id) {
		return id, true
	}
	return strings.CutPrefix(id, namespace+"-")
}
