package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue(name, nil)
	return a
}

// issue makes a certificate and its key, NAME.pem and NAME.key, signed by the authority or by itself.
func (a *authority) issue(name string, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: by == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".pem", "CERTIFICATE", der)
	a.write(name+".key", "EC PRIVATE KEY", secret)
	if c, err = x509.ParseCertificate(der); err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func TestEtcdWithCertificates(t *testing.T) {
	t.Parallel()
	needServer(t)
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	for _, name := range []string{"server", "client"} {
		ca.issue(name, ca)
	}
	other.issue("client", other)
	s := newSecureServer(t, "https", "--cert-file", ca.path("server.pem"), "--key-file", ca.path("server.key"),
		"--trusted-ca-file", ca.path("ca.pem"), "--client-cert-auth")
	good := config.TLS{CA: ca.path("ca.pem"), Cert: ca.path("client.pem"), Key: ca.path("client.key")}
	n := s.node("node-a", 1)
	n.etcd.TLS = good
	n.start(nil)
	n.connected()
	// HOST:PORT is as good as a URL.
	bare := s.node("node-b", 2)
	bare.etcd.TLS, bare.etcd.Endpoints = good, []string{strings.TrimPrefix(s.client, "https://")}
	bare.start(nil)
	bare.connected()

	for name, c := range map[string]struct {
		tls  config.TLS
		want string
	}{
		"a server of another authority": {config.TLS{CA: other.path("other.pem"), Cert: good.Cert, Key: good.Key}, "unknown authority"},
		"a client of another authority": {config.TLS{CA: good.CA, Cert: other.path("client.pem"), Key: other.path("client.key")}, "certificate"},
		"no client certificate":         {config.TLS{CA: good.CA}, "certificate"},
		"a file that is gone":           {config.TLS{CA: "/none"}, "etcd.tls.ca"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := s.node("node-x", 9)
			bad.t, bad.etcd.TLS = t, c.tls
			bad.start(nil)
			eventually(t, "said why", func() bool { return strings.Contains(bad.source.Status().Error, c.want) })
			text := bad.source.Status().Error
			if strings.Contains(text, "\n") {
				t.Errorf("%q is no line", text)
			}
			t.Log(text)
		})
	}
}

func TestEtcdWithPassword(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	root := s.raw()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(root.UserAdd(ctx, "root", "root"))
	do(root.UserGrantRole(ctx, "root", "root"))
	do(root.UserAdd(ctx, "tclb", "secret"))
	do(root.RoleAdd(ctx, "tclb"))
	do(root.RoleGrantPermission(ctx, "tclb", "/tclb/", clientv3.GetPrefixRangeEnd("/tclb/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	do(root.UserGrantRole(ctx, "tclb", "tclb"))
	do(root.AuthEnable(ctx))

	n := s.node("node-a", 1)
	password := filepath.Join(n.dir, "password")
	if err := os.WriteFile(password, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.etcd.User, n.etcd.PasswordFile = "tclb", password
	n.start(nil, container("a", "10.88.0.2", "web"))
	eventually(t, "wrong password", func() bool { return strings.Contains(n.source.Status().Error, "etcd.passwordFile") })
	t.Log(n.source.Status().Error)
	// The file is read again: no restart is needed.
	if err := os.WriteFile(password, []byte("secret\nthis line is a comment\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.connected()
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{s.client}, Username: "root", Password: "root", DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	eventually(t, "published", func() bool { return s.get(admin, "/tclb/v1/nodes/node-a") != "" })
	// Changed while it runs: noticed, and followed once the file says so.
	do(admin.UserChangePassword(ctx, "tclb", "renewed"))
	if err := os.WriteFile(password, []byte("renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.store.SetEndpoints(nil)
	eventually(t, "told with the new password", func() bool {
		r, err := admin.Get(ctx, "/tclb/v1/members/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && r.Count == 0
	})

	for name, c := range map[string]struct{ user, prefix, want string }{
		"no login":           {"", "/tclb", "set etcd.user"},
		"another's prefix":   {"tclb", "/others", "may not read and write below /others"},
		"a user that is not": {"nobody", "/tclb", "etcd.passwordFile"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := s.node("node-x", 9)
			bad.t, bad.etcd.User, bad.etcd.PasswordFile, bad.etcd.Prefix = t, c.user, password, c.prefix
			bad.start(nil)
			eventually(t, "said why", func() bool { return strings.Contains(bad.source.Status().Error, c.want) })
			t.Log(bad.source.Status().Error)
		})
	}
}
