package health

import "time"

// Result is how a probe ended.
type Result uint8

// The results. Unknown says something about this node, not about the backend: it could not ask. It
// changes and counts nothing.
const (
	Success Result = iota
	Failure
	Timeout
	Unknown
)

// Outcome is a result and, unless it is Success, why: a few words without the backend's address.
type Outcome struct {
	Result Result
	Reason string
}

// verdict is what results in a row make of a backend.
type verdict struct {
	bad    bool
	streak int    // results in a row that speak against bad
	reason string // of the last probe that failed, while bad
	since  time.Time
}

// take judges by one more result, and says whether the backend changed sides.
func (v *verdict) take(o Outcome, rise, fall int, now time.Time) bool {
	failed := o.Result != Success
	if failed && v.bad {
		v.reason = o.Reason
	}
	if failed == v.bad {
		v.streak = 0
		return false
	}
	v.streak++
	needed := rise
	if failed {
		needed = fall
	}
	if v.streak < needed {
		return false
	}
	v.bad, v.streak, v.reason, v.since = failed, 0, o.Reason, now
	return true
}
