package api

import (
	"fmt"
	"math"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// addShares fills in what part of new connections the tables in the maps give to each backend.
func (s *Server) addShares(service uint32, rows []Backend) error {
	shares, err := s.shares(service)
	if err != nil {
		return fmt.Errorf("read tables: %w", err)
	}
	for i := range rows {
		share := math.Round(shares[rows[i].id]*1e4) / 1e4
		rows[i].Share = &share
	}
	return nil
}

// tablePlace is where a table and its seats lie. All VIPs of a family share them, and ports do that have
// the same targets.
type tablePlace struct{ table, members datapath.Region }

// shares returns the part of a service's tables that each backend id has. One that sits in several,
// because two ports lead to it, has the mean of its parts.
func (s *Server) shares(service uint32) (map[uint32]float64, error) {
	frontends, err := s.datapath.Frontends()
	if err != nil {
		return nil, err
	}
	sum, tables := make(map[uint32]float64), make(map[uint32]float64)
	done := make(map[tablePlace]bool)
	for _, f := range frontends {
		place := tablePlace{f.Table, f.Members}
		if f.Kind != datapath.KindService || f.Service != service || f.Table.Len == 0 || done[place] {
			continue
		}
		done[place] = true
		members, parts, err := s.parts(f)
		if err != nil {
			return nil, err
		}
		for seat, id := range members {
			if id != 0 {
				sum[id] += parts[seat]
				tables[id]++
			}
		}
	}
	for id := range sum {
		sum[id] /= tables[id]
	}
	return sum, nil
}

// parts returns the backend id in each seat of a frontend's table, and the part of the slots that the
// seat has.
func (s *Server) parts(f datapath.Frontend) (members []uint32, parts []float64, err error) {
	positions, err := s.datapath.ReadRegion(f.Table)
	if err != nil {
		return nil, nil, err
	}
	if members, err = s.datapath.ReadRegion(f.Members); err != nil {
		return nil, nil, err
	}
	slots := f.Unpack(positions)
	slots = slots[min(int(f.Head), len(slots)):] // the head says whom to compare, each once
	parts = make([]float64, len(members))
	for _, seat := range slots {
		if int(seat) < len(parts) {
			parts[seat] += 1 / float64(len(slots))
		}
	}
	return members, parts, nil
}
