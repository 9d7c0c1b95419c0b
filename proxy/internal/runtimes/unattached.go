package runtimes

import (
	"cmp"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// pluginType is our type in a conflist.
const pluginType = "tclb-cni"

// settle is more than the time between our part of an ADD or DEL and the runtime's own, in which a
// container looks as if it were not attached.
var settle = 500 * time.Millisecond

// Finder finds unattached containers by what libcni keeps on disk. It only reads, and needs no
// runtime to run. Safe for concurrent use.
type Finder struct {
	conflists []string // directories with conflists, and with directories of them
	cache     string   // libcni's
	runDir    string   // of this node: a conflist that names another belongs to another node

	mu   sync.Mutex      // guards all below
	seen map[string]bool // found unattached when looked last, by endpoint id
}

// NewFinder returns a finder for directories of conflists, libcni's cache directory and the run
// directory of this node.
func NewFinder(conflists []string, cache, runDir string) *Finder {
	return &Finder{conflists: conflists, cache: cache, runDir: runDir}
}

// Find returns the unattached containers by network and id. attached returns the endpoint ids of
// those that are attached. What is unattached for the first time is looked at twice.
func (f *Finder) Find(attached func() map[string]bool) []view.Unattached {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.missing(attached)
	for id := range found {
		if !f.seen[id] {
			time.Sleep(settle)
			again := f.missing(attached)
			maps.DeleteFunc(found, func(id string, _ view.Unattached) bool { _, still := again[id]; return !still })
			break
		}
	}
	f.seen = make(map[string]bool, len(found))
	out := make([]view.Unattached, 0, len(found))
	for id, u := range found {
		f.seen[id] = true
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b view.Unattached) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.Ifname, b.Ifname))
	})
	return out
}

// missing looks once. The attached are listed last: who is attached meanwhile is.
func (f *Finder) missing(attached func() map[string]bool) map[string]view.Unattached {
	found := f.scan()
	if len(found) == 0 {
		return nil
	}
	ids := attached()
	maps.DeleteFunc(found, func(id string, _ view.Unattached) bool { return ids[id] })
	return found
}

// cniCache is a file of libcni's cache, as far as it matters.
type cniCache struct {
	Kind        string     `json:"kind"`
	ContainerID string     `json:"containerId"`
	Config      []byte     `json:"config"` // the conflist at ADD
	Ifname      string     `json:"ifName"`
	Network     string     `json:"networkName"`
	Args        [][]string `json:"cniArgs"`
	Result      struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	} `json:"result"`
}

// scan lists the running containers of chained networks, by the endpoint ids that they have or would
// have.
func (f *Finder) scan() map[string]view.Unattached {
	chained := make(map[string]bool)
	for _, dir := range f.conflists {
		f.readConflists(dir, chained)
	}
	var results []cniCache
	entries, err := os.ReadDir(filepath.Join(f.cache, "results"))
	if err != nil {
		return nil // no CNI here yet
	}
	for _, e := range entries {
		var c cniCache
		data, err := os.ReadFile(filepath.Join(f.cache, "results", e.Name()))
		if err != nil || json.Unmarshal(data, &c) != nil || c.Kind != "cniCacheV1" {
			continue // gone meanwhile, or of an old libcni
		}
		f.noteChain(c.Config, chained)
		results = append(results, c)
	}
	out := make(map[string]view.Unattached)
	for _, c := range results {
		if chained[c.Network] && c.running() {
			out[registry.EndpointID(c.ContainerID, c.Ifname)] = view.Unattached{
				ContainerID: c.ContainerID, Name: c.name(), Network: c.Network, Ifname: c.Ifname,
			}
		}
	}
	return out
}

// readConflists notes the chained networks of a directory and, as nerdctl has them, of the
// directories in it.
func (f *Finder) readConflists(dir string, chained map[string]bool) {
	for _, pattern := range []string{"*.conflist", "*/*.conflist"} {
		paths, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is right
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil {
				f.noteChain(data, chained)
			}
		}
	}
}

// noteChain notes a network if its conflist has our plugin, with our run directory.
func (f *Finder) noteChain(conflist []byte, chained map[string]bool) {
	var c struct {
		Name    string `json:"name"`
		Plugins []struct {
			Type   string `json:"type"`
			RunDir string `json:"runDir"`
		} `json:"plugins"`
	}
	if json.Unmarshal(conflist, &c) != nil {
		return
	}
	for _, p := range c.Plugins {
		if p.Type == pluginType && filepath.Clean(cmp.Or(p.RunDir, registry.DefaultRunDir)) == filepath.Clean(f.runDir) {
			chained[c.Name] = true
		}
	}
}

// running says whether the container's veth is on this node: what ended without a DEL is in the
// cache for good, but its veth's name, which is random, is gone. A network without a veth, such as
// macvlan, has nothing to attach to.
func (c *cniCache) running() bool {
	for _, i := range c.Result.Interfaces {
		if i.Sandbox == "" && isVeth(i.Name) {
			return true
		}
	}
	return false
}

// isVeth says whether a veth of that name is here. Not the bridge, which outlives containers.
func isVeth(name string) bool {
	link, err := netlinksafe.LinkByName(name)
	return err == nil && link.Type() == "veth"
}

// name returns what the runtime calls the container.
func (c *cniCache) name() string {
	for _, key := range []string{"K8S_POD_NAME", "NERDCTL_CNI_DHCP_HOSTNAME", "NOMAD_GROUP_NAME"} {
		for _, arg := range c.Args {
			if len(arg) == 2 && arg[0] == key {
				return arg[1]
			}
		}
	}
	return ""
}
