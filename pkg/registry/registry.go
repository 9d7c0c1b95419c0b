// Package registry is the run directory: one file per attached container, and the locks.
//
// The plugin writes, the proxy reads; neither needs the other to be there. A file appears whole
// (temporary name, then rename) and in a directory that a watcher can follow: everything named
// <ID>.json below Endpoints counts, everything else does not. The directory is lost at a reboot
// like the attachments it describes.
package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultRunDir is where the run directory lies unless the caller says otherwise.
const DefaultRunDir = "/run/tclb"

// ErrNotFound is returned by Get for an endpoint without a file.
var ErrNotFound = errors.New("no such endpoint")

const (
	endpointsDir = "endpoints"
	fileSuffix   = ".json"
	idLen        = 32
)

// Where an endpoint's Services came from.
const (
	SourceArgs        = "cni-args"    // TCLB_SERVICES in CNI_ARGS
	SourceAnnotations = "annotations" // pod annotation tclb.services
	SourceConflist    = "conflist"    // "services" in the network's conflist
)

// Endpoint is one attachment of a container: what the plugin learned and did at ADD.
type Endpoint struct {
	ID          string `json:"id"` // EndpointID(ContainerID, Ifname)
	ContainerID string `json:"containerID"`
	Ifname      string `json:"ifname"`  // inside the container
	Network     string `json:"network"` // name in the conflist
	Netns       string `json:"netns"`   // path that the runtime gave; it may be gone or mean another namespace by now
	Sandbox     string `json:"sandbox,omitempty"`

	HostInterface string `json:"hostInterface"` // host side of the veth
	HostIfindex   uint32 `json:"hostIfindex"`
	BootID        string `json:"bootID"`                // the boot that HostIfindex belongs to
	NetnsCookie   uint64 `json:"netnsCookie,omitempty"` // the container's namespace; 0 if the kernel has none

	MAC          string       `json:"mac"` // the container's
	Addresses    []netip.Addr `json:"addresses"`
	Master       string       `json:"master,omitempty"`    // bridge that the veth is a port of
	UpIfindex    uint32       `json:"upIfindex,omitempty"` // that bridge; 0 = routed
	UpMAC        string       `json:"upMAC"`               // the bridge's, or the host side's own if routed
	DefaultRoute bool         `json:"defaultRoute"`        // the container's default route leads through Ifname

	Services  []string `json:"services,omitempty"` // what it joins explicitly
	Source    string   `json:"source,omitempty"`   // where Services came from; "" without
	Names     []string `json:"names,omitempty"`    // joins services of these names; empty where Services is not
	Weight    *int     `json:"weight,omitempty"`   // nil = the service's default
	Port      uint16   `json:"port,omitempty"`     // its own target port; 0 = the service's
	Container string   `json:"container,omitempty"`

	Attach  string    `json:"attach"` // attach.Kind of the programs
	Created time.Time `json:"created"`
}

// EndpointID names the attachment of a container's interface: it is known at DEL, when nothing
// else about the container may be.
func EndpointID(containerID, ifname string) string {
	sum := sha256.Sum256([]byte(containerID + "\x00" + ifname))
	return hex.EncodeToString(sum[:])[:idLen]
}

// Owner returns a number for a container, the same for all its attachments and never 0, by which the
// datapath knows that a container reaches itself. It fits into 31 bits.
func Owner(containerID string) uint32 {
	sum := sha256.Sum256([]byte(containerID))
	return binary.BigEndian.Uint32(sum[:4])>>1 | 1
}

// Dir is an open run directory. It holds no descriptor and no state: processes share the
// directory, and writers of one endpoint exclude each other by Lock.
type Dir struct {
	path string
}

// Open returns the run directory at path, creating it and its parts, for the owner alone.
func Open(path string) (*Dir, error) {
	d := &Dir{path: path}
	for _, dir := range []string{path, d.Endpoints(), d.locks()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create run directory: %w", err)
		}
	}
	return d, nil
}

// Path returns the run directory's path.
func (d *Dir) Path() string { return d.path }

// Endpoints returns the directory of the endpoint files, for watching it.
func (d *Dir) Endpoints() string { return filepath.Join(d.path, endpointsDir) }

// Put writes e's file, replacing an older one. The caller holds Lock(e.ID).
func (d *Dir) Put(e Endpoint) error {
	if err := checkID(e.ID); err != nil {
		return err
	}
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return fmt.Errorf("encode endpoint %s: %w", e.ID, err)
	}
	// A fixed temporary name: what a crash leaves behind is overwritten or deleted with the endpoint.
	tmp := d.temp(e.ID)
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write endpoint: %w", err), remove(tmp))
	}
	if err := os.Rename(tmp, d.file(e.ID)); err != nil {
		return errors.Join(fmt.Errorf("write endpoint: %w", err), remove(tmp))
	}
	return nil
}

// Get reads the endpoint id. It returns ErrNotFound if there is none.
func (d *Dir) Get(id string) (Endpoint, error) {
	if err := checkID(id); err != nil {
		return Endpoint{}, err
	}
	data, err := os.ReadFile(d.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Endpoint{}, fmt.Errorf("endpoint %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Endpoint{}, fmt.Errorf("read endpoint: %w", err)
	}
	var e Endpoint
	if err := json.Unmarshal(data, &e); err != nil {
		return Endpoint{}, fmt.Errorf("decode %s: %w", d.file(id), err)
	}
	if e.ID != id {
		return Endpoint{}, fmt.Errorf("decode %s: it describes endpoint %q", d.file(id), e.ID)
	}
	return e, nil
}

// Delete removes the endpoint's file. One that is not there is no error. The caller holds Lock(id).
func (d *Dir) Delete(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return errors.Join(remove(d.temp(id)), remove(d.file(id)))
}

// List returns every endpoint, in the order of their IDs. Files that cannot be read are skipped
// and reported, one error each; a file that is deleted meanwhile is neither.
func (d *Dir) List() ([]Endpoint, []error) {
	entries, err := os.ReadDir(d.Endpoints())
	if err != nil {
		return nil, []error{fmt.Errorf("list endpoints: %w", err)}
	}
	var (
		out  []Endpoint
		errs []error
	)
	for _, entry := range entries {
		id, ok := IDOf(entry.Name())
		if !ok {
			continue
		}
		e, err := d.Get(id)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			errs = append(errs, err)
		default:
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return out, errs
}

// IDOf returns the endpoint that a file name in Endpoints stands for; ok is false for
// temporary and foreign files.
func IDOf(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(filepath.Base(name), fileSuffix)
	return id, ok && checkID(id) == nil
}

// BootID returns the kernel's random name of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (d *Dir) file(id string) string { return filepath.Join(d.Endpoints(), id+fileSuffix) }
func (d *Dir) temp(id string) string { return filepath.Join(d.Endpoints(), "."+id+".tmp") }
func (d *Dir) locks() string         { return filepath.Join(d.path, "locks") }

// checkID keeps names of other shapes, and so other paths, out of file names.
func checkID(id string) error {
	if _, err := hex.DecodeString(id); err != nil || len(id) != idLen {
		return fmt.Errorf("endpoint id %q: want %d hex digits", id, idLen)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}
