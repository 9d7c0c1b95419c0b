package cluster

import (
	"context"
	"errors"
	"time"
)

// Errors of a store.
var (
	errCompacted = errors.New("the changes since are forgotten")
	errNoLease   = errors.New("no such lease")
)

// kv is what the cluster needs of etcd. Keys are below the cluster's own prefix, which is not seen.
type kv interface {
	// load returns everything, at one revision.
	load(ctx context.Context) (map[string]item, int64, error)
	// watch calls changed for what happens from a revision on, each revision as a whole, until ctx ends
	// or the watch breaks. A call without changes is a sign of life.
	watch(ctx context.Context, from int64, changed func(batch)) error
	// poke asks for a sign of life from watches, and says whether etcd answers.
	poke(ctx context.Context) error
	// commit does all of ops if all of conds hold, and returns at which revision.
	commit(ctx context.Context, conds []cond, ops []op) (ok bool, revision int64, err error)

	grant(ctx context.Context, ttl time.Duration) (lease int64, err error)
	// keep renews a lease: errNoLease if it has ended.
	keep(ctx context.Context, lease int64) error
	revoke(ctx context.Context, lease int64) error
	close() error
}

// item is a value and where it comes from.
type item struct {
	value    []byte
	lease    int64
	revision int64 // of its last change
}

// batch are changes of one or more whole revisions.
type batch struct {
	revision int64 // up to here everything is known; 0 = no news
	changes  []change
}

// change is one key's: a nil value means that it is gone.
type change struct {
	key string
	item
}

// cond holds if the key was last changed at a revision; 0 = it is not there.
type cond struct {
	key      string
	revision int64
}

// op puts a value, or deletes the key, or with dir set everything below it.
type op struct {
	key    string
	value  []byte
	lease  int64
	delete bool
	dir    bool
}

// maxOps is how many operations etcd takes at once; its limit is 128.
const maxOps = 100
