package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/cluster"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// joinCluster makes the node part of a cluster, if there is an etcd.
func (p *proxy) joinCluster(cfg *config.Config) {
	if len(cfg.Etcd.Endpoints) == 0 {
		return
	}
	p.store.Share()
	p.cluster = cluster.New(cluster.Options{
		Etcd: cfg.Etcd, Node: cfg.Node.Name, StateDir: p.StateDir, Store: p.store,
		Self: p.present, Changed: p.passed.next, Log: p.Log,
	})
}

// sharedTables returns whom the reconciler shares tables with; nil = nobody.
func (p *proxy) sharedTables() reconcile.Shared {
	if p.cluster == nil {
		return nil
	}
	return p.cluster
}

// tablesChanged yields when other nodes changed tables; never without etcd.
func (p *proxy) tablesChanged() <-chan struct{} {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.TablesChanged()
}

// nodesChanged yields when nodes came to etcd or went; never without etcd.
func (p *proxy) nodesChanged() <-chan struct{} {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.NodesChanged()
}

// clusterNodes are the other nodes that etcd has.
func (p *proxy) clusterNodes() []cluster.KnownNode {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.Nodes()
}

// present is what other nodes are told of this one.
func (p *proxy) present() cluster.Node {
	address := p.node.Load().Address
	out := cluster.Node{Address: address, MTU: mtuOf(address), Version: p.Version, Started: p.started}
	if b := p.bridges.Load(); b != nil {
		out.Subnets = sweep.Subnets(*b)
	}
	return out
}

// mtuOf returns the MTU of the device that has an address, 0 if none has.
func mtuOf(address netip.Addr) int {
	links, err := net.Interfaces()
	if err != nil {
		return 0
	}
	for _, link := range links {
		addresses, _ := link.Addrs()
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == address {
				return link.MTU
			}
		}
	}
	return 0
}

// clusterSubnets are the container subnets of the other nodes.
func (p *proxy) clusterSubnets() (out []netip.Prefix) {
	for _, n := range p.clusterNodes() {
		out = append(out, n.Subnets...)
	}
	return out
}

// putIntoEtcd defines services for all nodes. Files that an earlier apply wrote for them on this node
// would win over etcd, so they go.
func (p *proxy) putIntoEtcd(ctx context.Context, f *config.File, texts map[string][]byte) error {
	list := make([]cluster.NewService, 0, len(f.Services))
	var unnamed []lb.Service
	for _, d := range f.Services {
		n := cluster.NewService{Name: d.Service.Name, VIPs: d.Service.VIPs, Text: texts[d.Service.Name]}
		if list = append(list, n); len(n.VIPs) == 0 {
			unnamed = append(unnamed, d.Service)
		}
	}
	err := p.cluster.Put(ctx, list, func(others []lb.Service, held map[string][]netip.Addr) (map[string][]netip.Addr, error) {
		all := slices.Concat(others, unnamed)
		for _, svc := range p.store.Snapshot().Services {
			if svc.File != state.FileEtcd {
				all = append(all, svc.Spec)
			}
		}
		return config.AssignVIPs(all, p.config.Load().VIPPool, held)
	})
	if err != nil {
		return inWordsOf(err)
	}
	for _, n := range list {
		if err := os.Remove(filepath.Join(p.servicesDir, ownFile(n.Name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove file of service %s: %w", n.Name, err)
		}
	}
	return nil
}

// deleteFromEtcd removes a service from all nodes.
func (p *proxy) deleteFromEtcd(ctx context.Context, service string) error {
	err := p.cluster.Delete(ctx, service)
	if errors.Is(err, cluster.ErrNoService) {
		return fmt.Errorf("service %q: %w", service, view.ErrNoService)
	}
	return inWordsOf(err)
}

// inWordsOf says in the view's words why etcd was not changed.
func inWordsOf(err error) error {
	if errors.Is(err, cluster.ErrAway) {
		return fmt.Errorf("%w: %w", view.ErrAway, err)
	}
	return err
}

// clusterStatus returns how the cluster stands, nil without etcd.
func (p *proxy) clusterStatus() *view.Cluster {
	if p.cluster == nil {
		return nil
	}
	st := p.cluster.Status()
	return &view.Cluster{
		Endpoints: st.Endpoints, Connected: st.Connected, Since: st.Since, Error: st.Error, Nodes: st.Nodes,
		Lost: st.Lost, Problems: append(st.Problems, p.store.Clashes()...),
	}
}

// clusterVIPs are the VIPs of the services of etcd.
func (p *proxy) clusterVIPs() (out []netip.Addr) {
	for _, f := range p.clusterFiles(nil) {
		for _, d := range f.Services {
			out = append(out, d.Service.VIPs...)
		}
	}
	return out
}

// clusterFiles are the services of etcd but for those named, for files to be compared with.
func (p *proxy) clusterFiles(without []string) []config.File {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.Files(without)
}
