package sched

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// The constants of the selection hash. Frozen: bpf/lib has the same, and a flow that lost its
// conntrack entry is found again only while both, on every node, stay what they are.
const (
	hashSeed  uint64 = 0x9E3779B97F4A7C15
	hashPrime uint64 = 0xD6E8FEB86659FD93
)

// Slot returns the slot of a table of size slots that hash selects: its high bits, scaled.
//
// Size 0 gives slot 0.
func Slot(hash, size uint32) uint32 {
	slot, _ := bits.Mul32(hash, size)
	return slot
}

// TupleHash is the selection hash of a flow, the same as the datapath computes.
//
// IPv4 addresses count as their IPv4-mapped IPv6 form.
func TupleHash(client, vip netip.AddrPort, proto lb.Protocol) uint32 {
	h := hashAddr(hashSeed, client.Addr())
	h = hashAddr(h, vip.Addr())
	h = hashWord(h, uint64(client.Port())<<32|uint64(vip.Port())<<16|uint64(proto))
	return hashEnd(h)
}

// ClientHash is the selection hash where all flows of a client go to one backend, over every
// port, protocol and VIP of the service.
func ClientHash(client netip.Addr) uint32 {
	return hashEnd(hashWord(hashAddr(hashSeed, client), 0))
}

func hashAddr(h uint64, a netip.Addr) uint64 {
	b := a.As16()
	h = hashWord(h, binary.LittleEndian.Uint64(b[:8]))
	return hashWord(h, binary.LittleEndian.Uint64(b[8:]))
}

func hashWord(h, word uint64) uint64 {
	h ^= word
	h *= hashPrime
	return h ^ h>>32
}

func hashEnd(h uint64) uint32 {
	h *= hashPrime
	h ^= h >> 29
	return uint32(h >> 32)
}

// stableSeed turns a member's key into the seed of its permutation: FNV-1a for the bytes, then
// mix64, because FNV's high bits depend little on a key's last bytes and keys often differ only
// there. Frozen: bases are kept on disk and in etcd, and nodes must agree.
func stableSeed(stableKey string) uint64 {
	h := uint64(0xCBF29CE484222325)
	for i := range len(stableKey) {
		h ^= uint64(stableKey[i])
		h *= 0x100000001B3
	}
	return mix64(h)
}

// mix64 is a bijection in which every bit of x reaches every bit of the result. Frozen.
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}
