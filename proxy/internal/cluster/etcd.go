package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// etcd is a kv on real servers.
type etcd struct {
	client *clientv3.Client
	prefix string // of all keys, with the layout's version
}

// dialTimeout bounds how long a connection and a login may take.
const dialTimeout = 5 * time.Second

// dialEtcd connects. Certificates and password are read anew each time, so that they can be renewed in
// place.
func dialEtcd(ctx context.Context, c config.Etcd) (kv, error) {
	o := clientv3.Config{
		Context:              ctx,
		Endpoints:            urls(c),
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Username:             c.User,
		Logger:               zap.NewNop(),
	}
	var err error
	if o.TLS, err = tlsConfig(c); err != nil {
		return nil, err
	}
	if c.User != "" {
		if o.Password, err = readPassword(c.PasswordFile); err != nil {
			return nil, err
		}
	}
	client, err := clientv3.New(o) // logs in, if there is a user
	if err != nil {
		return nil, err
	}
	return &etcd{client: client, prefix: c.Prefix + layout}, nil
}

// urls returns the servers as URLs. HOST:PORT alone is asked by https if there is anything to check or to
// show a certificate with.
func urls(c config.Etcd) []string {
	scheme := "http://"
	if c.TLS.CA != "" || c.TLS.Cert != "" {
		scheme = "https://"
	}
	out := slices.Clone(c.Endpoints)
	for i, e := range out {
		if !strings.Contains(e, "://") {
			out[i] = scheme + e
		}
	}
	return out
}

// tlsConfig returns nil where no server is asked by https.
func tlsConfig(c config.Etcd) (*tls.Config, error) {
	if !slices.ContainsFunc(urls(c), func(u string) bool { return strings.HasPrefix(u, "https://") }) {
		return nil, nil //nolint:nilnil // no TLS is no error
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS.CA != "" {
		pem, err := os.ReadFile(c.TLS.CA)
		if err != nil {
			return nil, fmt.Errorf("read etcd.tls.ca: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd.tls.ca: no certificate in %s", c.TLS.CA)
		}
	}
	if c.TLS.Cert != "" {
		cert, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
		if err != nil {
			return nil, fmt.Errorf("read etcd.tls.cert and key: %w", err)
		}
		out.Certificates = []tls.Certificate{cert}
	}
	return out, nil
}

// readPassword returns the first line of a file.
func readPassword(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read etcd.passwordFile: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

func (e *etcd) close() error { return e.client.Close() }

// page is how many keys are read at once: an answer must stay below what gRPC takes.
const page = 2000

func (e *etcd) load(ctx context.Context) (map[string]item, int64, error) {
	out := make(map[string]item)
	from, end := e.prefix, clientv3.GetPrefixRangeEnd(e.prefix)
	var revision int64
	for {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(page)}
		if revision > 0 {
			options = append(options, clientv3.WithRev(revision))
		}
		r, err := e.client.Get(ctx, from, options...)
		if err != nil {
			return nil, 0, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			out[e.short(kv.Key)] = itemOf(kv)
		}
		if !r.More || len(r.Kvs) == 0 {
			return out, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

func (e *etcd) short(key []byte) string { return strings.TrimPrefix(string(key), e.prefix) }

func itemOf(kv *mvccpb.KeyValue) item {
	value := kv.Value
	if value == nil {
		value = []byte{} // nil says that it is gone
	}
	return item{value: value, lease: kv.Lease, revision: kv.ModRevision}
}

func (e *etcd) watch(ctx context.Context, from int64, changed func(batch)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range e.client.Watch(ctx, e.prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		switch {
		case r.CompactRevision != 0:
			return errCompacted
		case r.Err() != nil:
			return r.Err()
		}
		var b batch
		for _, ev := range r.Events {
			c := change{key: e.short(ev.Kv.Key), item: item{revision: ev.Kv.ModRevision}}
			if ev.Type == clientv3.EventTypePut {
				c.item = itemOf(ev.Kv)
			}
			b.revision = max(b.revision, ev.Kv.ModRevision)
			b.changes = append(b.changes, c)
		}
		changed(b)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New("the watch ended")
}

// poke reads nothing in particular: a read that all servers agree on is what tells.
func (e *etcd) poke(ctx context.Context) error {
	if _, err := e.client.Get(ctx, e.prefix+nodesDir, clientv3.WithKeysOnly()); err != nil {
		return err
	}
	return e.client.RequestProgress(clientv3.WithRequireLeader(ctx))
}

func (e *etcd) commit(ctx context.Context, conds []cond, ops []op) (bool, int64, error) {
	cmps := make([]clientv3.Cmp, len(conds))
	for i, c := range conds {
		cmps[i] = clientv3.Compare(clientv3.ModRevision(e.prefix+c.key), "=", c.revision)
	}
	then := make([]clientv3.Op, len(ops))
	for i, o := range ops {
		key := e.prefix + o.key
		switch {
		case o.delete && o.dir:
			then[i] = clientv3.OpDelete(key, clientv3.WithPrefix())
		case o.delete:
			then[i] = clientv3.OpDelete(key)
		case o.lease != 0:
			then[i] = clientv3.OpPut(key, string(o.value), clientv3.WithLease(clientv3.LeaseID(o.lease)))
		default:
			then[i] = clientv3.OpPut(key, string(o.value))
		}
	}
	r, err := e.client.Txn(ctx).If(cmps...).Then(then...).Commit()
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, 0, errNoLease
	}
	if err != nil {
		return false, 0, err
	}
	return r.Succeeded, r.Header.Revision, nil
}

func (e *etcd) grant(ctx context.Context, ttl time.Duration) (int64, error) {
	r, err := e.client.Grant(ctx, max(1, int64((ttl+time.Second-1)/time.Second)))
	if err != nil {
		return 0, err
	}
	return int64(r.ID), nil
}

func (e *etcd) keep(ctx context.Context, lease int64) error {
	_, err := e.client.KeepAliveOnce(ctx, clientv3.LeaseID(lease))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return errNoLease
	}
	return err
}

func (e *etcd) revoke(ctx context.Context, lease int64) error {
	_, err := e.client.Revoke(ctx, clientv3.LeaseID(lease))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}
