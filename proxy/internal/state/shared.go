package state

import "slices"

// takeOverrides replaces the overrides by those of etcd, but for what this node was told since, and adds
// the services that this concerns. s.mu is held.
func (s *Store) takeOverrides(c *Cluster, touched map[string]bool) {
	next := make(map[overrideKey]Override, len(c.Overrides))
	for _, o := range c.Overrides {
		o.Unsent = false
		next[o.key()] = o
	}
	for k, o := range s.overrides.by {
		if o.Unsent && !slices.ContainsFunc(c.Sent, o.equal) {
			next[k] = o
		}
	}
	changed := false
	for _, both := range [...][2]map[overrideKey]Override{{s.overrides.by, next}, {next, s.overrides.by}} {
		for k, o := range both[0] {
			if other, ok := both[1][k]; !ok || !o.equal(other) || o.Unsent != other.Unsent {
				touched[k.service], changed = true, true
			}
		}
	}
	if !changed {
		return
	}
	s.overrides.by = next
	if err := s.overrides.save(); err != nil {
		s.log.Error("drains and weights of the cluster are not kept for a restart", "err", err)
	}
}

// equal says whether two overrides say the same of the same backend.
func (o Override) equal(p Override) bool {
	return o.key() == p.key() && o.Endpoint == p.Endpoint && o.Drain == p.Drain && sameWeight(o.Weight, p.Weight)
}

// Ended says that the override says nothing any more.
func (o Override) Ended() bool { return !o.Drain && o.Weight == nil }

// Unsent returns the overrides that the other nodes do not know yet.
func (s *Store) Unsent() []Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Override
	for _, o := range s.overrides.by {
		if o.Unsent {
			out = append(out, o)
		}
	}
	return out
}

// answers says whether this node says when an override ends: the one where the container is attached,
// or where the command was given.
func (s *Store) answers(o Override) bool {
	if !s.shared {
		return true
	}
	if o.Endpoint != "" {
		return o.Node == s.node
	}
	return o.Origin == s.node
}
