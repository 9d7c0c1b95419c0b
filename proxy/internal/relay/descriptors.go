package relay

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What the rest of the process keeps for itself: its API, its files, etcd.
const reservedDescriptors = 512

// wantedDescriptors is enough for half a million connections; more is a question of memory anyway.
const wantedDescriptors = 1 << 20

// descriptors is how many more of them connections, sessions and pipes may take. Counting them beats finding
// out: at the limit the process could not even accept an API client.
type descriptors struct{ left atomic.Int64 }

// raise lifts the process's limit as far as it is allowed to.
func (d *descriptors) raise() {
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		d.left.Store(reservedDescriptors)
		return
	}
	if limit.Cur < wantedDescriptors {
		more := unix.Rlimit{Cur: wantedDescriptors, Max: max(limit.Max, wantedDescriptors)}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &more) != nil { // only root may raise the hard limit
			more = unix.Rlimit{Cur: limit.Max, Max: limit.Max}
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &more)
		}
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	limit.Cur = min(limit.Cur, 1<<30)
	d.left.Store(max(int64(limit.Cur)/2, int64(limit.Cur)-reservedDescriptors))
}

// take says whether n may be opened; they are given back by give.
func (d *descriptors) take(n int64) bool {
	if d.left.Add(-n) >= 0 {
		return true
	}
	d.left.Add(n)
	return false
}

func (d *descriptors) give(n int64) { d.left.Add(n) }
