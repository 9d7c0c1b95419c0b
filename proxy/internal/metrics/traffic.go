package metrics

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// trafficKey labels traffic. Backends that share it (one address and port in two protocols, or
// one address on two nodes) are added up.
type trafficKey struct {
	service string
	backend string
}

// labelledTraffic is the traffic behind one label pair.
type labelledTraffic struct {
	trafficKey
	traffic
	latency time.Duration // to answer a SYN and a first request; 0 = never measured
}

// traffic is what went through a backend. active comes and goes; the rest only rises.
type traffic struct {
	active, total, packets, bytes uint64
}

func (t *traffic) add(o traffic) {
	t.active += o.active
	t.total += o.total
	t.packets += o.packets
	t.bytes += o.bytes
}

// trafficReader adds what ended flows left in their backend's counters to what running flows
// still carry.
type trafficReader struct {
	datapath Datapath
	last     map[uint32]reported // by backend id
}

// reported is what the last scrape said of a backend.
type reported struct {
	gen uint32
	traffic
}

// read returns the traffic of the rows, which are all in the maps, in their order.
func (r *trafficReader) read(rows []view.Backend) ([]labelledTraffic, error) {
	records, err := r.datapath.Backends()
	if err != nil {
		return nil, fmt.Errorf("read backends: %w", err)
	}
	live, err := r.readFlows(records)
	if err != nil {
		return nil, err
	}
	out := make([]labelledTraffic, 0, len(rows))
	at := make(map[trafficKey]int, len(rows))
	last := make(map[uint32]reported, len(rows))
	for i := range rows {
		row := &rows[i]
		stat := r.datapath.BackendStat(row.ID)
		t := live[row.ID]
		t.add(traffic{active: stat.Active, total: stat.Total, packets: stat.Packets, bytes: stat.Bytes})
		t = r.rising(row.ID, records[row.ID].Gen, t)
		last[row.ID] = reported{records[row.ID].Gen, t}

		key := trafficKey{row.Service, netip.AddrPortFrom(row.Address, row.Port).String()}
		if known, ok := at[key]; ok {
			out[known].add(t)
			out[known].latency = max(out[known].latency, stat.SYNLatency+stat.FirstLatency)
			continue
		}
		at[key] = len(out)
		out = append(out, labelledTraffic{key, t, stat.SYNLatency + stat.FirstLatency})
	}
	r.last = last
	return out, nil
}

// readFlows adds up the running flows by backend id, in one pass over the connection table. Flows
// of an earlier owner of the id are not this backend's.
func (r *trafficReader) readFlows(records map[uint32]datapath.Backend) (map[uint32]traffic, error) {
	out := make(map[uint32]traffic)
	err := r.datapath.Pairs(func(p datapath.Pair) bool {
		if p.BackendID != 0 && records[p.BackendID].Gen == p.BackendGen {
			t := out[p.BackendID]
			t.packets += p.Packets[0] + p.Packets[1]
			t.bytes += p.Bytes[0] + p.Bytes[1]
			out[p.BackendID] = t
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	return out, nil
}

// rising keeps a counter from falling. A flow that ends between the pass over the flows and the
// reading of its backend's counters is counted twice for one scrape; a fall in the next one would
// look like a restart to Prometheus. Another generation is another backend, and begins anew.
func (r *trafficReader) rising(id, gen uint32, t traffic) traffic {
	before, ok := r.last[id]
	if !ok || before.gen != gen || t.total < before.total {
		return t
	}
	t.packets = max(t.packets, before.packets)
	t.bytes = max(t.bytes, before.bytes)
	return t
}
