package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"

	"github.com/tc-loadbalancer/tclb/proxy/internal/diskfile"
)

// ownHeader stands at the top of files that `tclb service apply` writes.
const ownHeader = "# Written by tclb service apply; tclb service delete removes it.\n"

// ownFile is the file that Apply keeps a service in. Names that begin with tclb are ours.
func ownFile(service string) string { return "tclb-" + service + ".yaml" }

// Apply implements view.View.
func (p *proxy) Apply(ctx context.Context, name string, data []byte) ([]string, error) {
	f := config.ParseServices(name, name, data)
	if len(f.Findings) > 0 {
		return nil, &view.InvalidError{Findings: f.Findings}
	}
	names := make([]string, len(f.Services))
	own := make([]string, len(f.Services))
	for i, d := range f.Services {
		names[i], own[i] = d.Service.Name, ownFile(d.Service.Name)
	}
	for i, n := range names {
		if at, ok := p.services.FileOf(n); ok && filepath.Base(at) != own[i] {
			return nil, fmt.Errorf("service %s: %w: change %s", n, view.ErrForeign, at)
		}
	}
	if findings := p.services.Try(f, own, p.clusterFiles(names)); len(findings) > 0 {
		return nil, &view.InvalidError{Findings: findings}
	}
	files, err := split(data)
	if err != nil {
		return nil, err
	}
	if p.cluster != nil {
		err = p.putIntoEtcd(ctx, &f, files)
	} else {
		err = p.writeOwnFiles(files)
	}
	if err != nil {
		return nil, err
	}
	p.services.Reread()
	if err := p.waitApplied(ctx); err != nil {
		return nil, err
	}
	var errs []error
	for _, n := range names {
		if err := p.serviceError(n); err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", n, err))
		}
	}
	slices.Sort(names)
	return names, errors.Join(errs...)
}

// writeOwnFiles writes each service into its file.
func (p *proxy) writeOwnFiles(files map[string][]byte) error {
	dir := p.servicesDir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write services: %w", err)
	}
	for n, text := range files {
		if err := diskfile.Replace(filepath.Join(dir, ownFile(n)), text); err != nil {
			return fmt.Errorf("write service %s: %w", n, err)
		}
	}
	return nil
}

// Delete implements view.View.
func (p *proxy) Delete(ctx context.Context, service string) error {
	at, ok := p.services.FileOf(service)
	if p.cluster != nil && (!ok || p.cluster.Has(service) && filepath.Base(at) == ownFile(service)) {
		if err := p.deleteFromEtcd(ctx, service); err != nil {
			return err
		}
		if !ok {
			return p.waitApplied(ctx)
		}
	}
	if !ok {
		return fmt.Errorf("service %q: %w", service, view.ErrNoService)
	}
	if filepath.Base(at) != ownFile(service) {
		return fmt.Errorf("service %s: %w: remove it from %s", service, view.ErrForeign, at)
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete service %s: %w", service, err)
	}
	p.services.Reread()
	return p.waitApplied(ctx)
}

// split makes a services file of each service in a valid one, by name. The services stay as they were
// written, comments included; aliases are written out, for what they point to may be in another file.
func split(data []byte) (map[string][]byte, error) {
	var doc struct {
		Services []yaml.Node `yaml:"services"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("split services: %w", err)
	}
	out := make(map[string][]byte, len(doc.Services))
	for i := range doc.Services {
		var id struct {
			Name string `yaml:"name"`
		}
		if err := doc.Services[i].Decode(&id); err != nil {
			return nil, fmt.Errorf("split services: %w", err)
		}
		text, err := yaml.Marshal(map[string][]*yaml.Node{"services": {expand(&doc.Services[i])}})
		if err != nil {
			return nil, fmt.Errorf("split services: %w", err)
		}
		out[id.Name] = append([]byte(ownHeader), text...)
	}
	return out, nil
}

// expand copies a node with its aliases written out. The parser made sure that this ends.
func expand(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	c := *n
	c.Anchor = ""
	c.Content = make([]*yaml.Node, len(n.Content))
	for i, child := range n.Content {
		c.Content[i] = expand(child)
	}
	return &c
}
