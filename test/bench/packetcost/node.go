package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

const (
	loopback      = 1 // a test run's packet is on the namespace's loopback device
	backends      = 3
	otherServices = 5000 // that have nothing to do with the measured one
	clients       = 512  // addresses; each has 2^14 ports
	serviceID     = 1
)

var (
	vip         = netip.MustParseAddr("192.0.2.10")
	firstClient = netip.MustParseAddr("198.18.0.0")
	otherVIP    = netip.MustParseAddr("198.19.0.0")
	measured    = lb.Frontend{VIP: vip, Port: 80, Protocol: lb.TCP}
)

// node is a datapath with one service, and the program that makes its packets.
type node struct {
	bpffs  string
	maps   *datapath.Datapath
	loader NextPacketObjects
}

func newNode() (*node, error) {
	dir, err := os.MkdirTemp("", "tclb-packetcost")
	if err != nil {
		return nil, err
	}
	n := &node{bpffs: filepath.Join(dir, "bpf")}
	if n.maps, err = datapath.Load(datapath.Options{BPFFS: n.bpffs}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := n.configure(); err != nil {
		n.close()
		return nil, err
	}
	if err := LoadNextPacketObjects(&n.loader, nil); err != nil {
		n.close()
		return nil, fmt.Errorf("load the packet maker: %w", err)
	}
	return n, errors.Join(
		n.loader.Vip.Set(v4(vip, false)), n.loader.Clients.Set(v4(firstClient, true)), n.attach(true),
	)
}

func (n *node) close() {
	_ = n.loader.Close()
	_ = n.maps.Close()
	_ = unix.Unmount(n.bpffs, unix.MNT_DETACH)
	_ = os.RemoveAll(filepath.Dir(n.bpffs))
}

// attach puts the program under test behind the packet maker, or one that does nothing.
func (n *node) attach(underTest bool) error {
	program := n.loader.Nothing
	if underTest {
		program = n.maps.Program(datapath.FromContainer)
	}
	return n.loader.UnderTest.Put(uint32(0), program)
}

// configure writes what the proxy would: backends, the table, the frontends; and what the plugin
// would: the clients' addresses.
func (n *node) configure() error {
	errs := []error{
		n.maps.PutSettings(datapath.Settings{AntiSpoof: true, Hairpin4: netip.MustParseAddr("169.254.77.1"), Hairpin6: netip.MustParseAddr("fd00:7c1b::1")}),
		n.maps.PutService(0, datapath.Service{Gen: 1, Timeouts: datapath.DefaultTimeouts}),
		n.maps.PutService(serviceID, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: datapath.DefaultTimeouts, LoadFactor: 1.25, Affinity: time.Hour}),
	}
	for address, i := firstClient, 0; i < clients; address, i = address.Next(), i+1 {
		errs = append(errs, n.maps.PutEndpoint(datapath.EndpointKey{Address: address, Ifindex: loopback}, datapath.Endpoint{UpIfindex: loopback}))
	}
	service, err := n.spread(lb.Maglev, backends)
	if err != nil {
		return err
	}
	frontends := map[lb.Frontend]datapath.Frontend{}
	for i := range backends {
		address := backendAddress(i)
		frontends[lb.Frontend{VIP: address}] = datapath.Frontend{Kind: datapath.KindBackend}
		frontends[lb.Frontend{VIP: address, Port: 8080, Protocol: lb.TCP}] = datapath.Frontend{Kind: datapath.KindBackend}
	}
	frontends[lb.Frontend{VIP: vip}] = datapath.Frontend{Kind: datapath.KindVIP, Service: serviceID}
	frontends[measured] = service
	for address, i := otherVIP, 0; i < otherServices; address, i = address.Next(), i+1 {
		frontends[lb.Frontend{VIP: address}] = datapath.Frontend{Kind: datapath.KindVIP, Service: serviceID}
		frontends[lb.Frontend{VIP: address, Port: 80, Protocol: lb.TCP}] = service
	}
	return errors.Join(append(errs, n.maps.PutFrontends(frontends))...)
}

// printPrograms says how much there was to verify and how large the machine code is.
func (n *node) printPrograms(w io.Writer) error {
	fmt.Fprintf(w, "## Programs\n\n| program | instructions verified | machine code, bytes |\n|---|---|---|\n")
	for _, name := range []string{datapath.FromContainer, datapath.ToContainer, datapath.FromHost} {
		info, err := n.maps.Program(name).Info()
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		verified, _ := info.VerifiedInstructions()
		code, _ := info.JitedInsns()
		fmt.Fprintf(w, "| %s | %d | %d |\n", name, verified, len(code))
	}
	return nil
}

// frame is what the packet maker writes the next headers into: a TCP segment of 64 bytes.
func frame() []byte {
	b := make([]byte, 64)
	copy(b[6:], []byte{2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 50, 0, 1, 0x40, 0, 64, byte(lb.TCP)})
	b[46] = 0x50 // length of the TCP header, in words
	b[48] = 0x10 // window
	return b
}

// v4 returns an address as a number: in host order, or as it stands in a packet.
func v4(a netip.Addr, hostOrder bool) uint32 {
	b := a.As4()
	if hostOrder {
		return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	}
	return uint32(b[3])<<24 | uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
}
