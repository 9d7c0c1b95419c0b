package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Keys of etcd that name files.
const (
	keyPassword = "passwordFile"
	keyCA       = "ca"
	keyCert     = "cert"
)

// spotEtcd notes where a file is named, for findings about it.
func (c *Config) spotEtcd(m *mapping, key string) {
	if at, ok := m.get(key); ok {
		c.etcd[key] = at.spot()
	}
}

// checkEtcd returns a finding for each file of etcd's that cannot be used. Later they are read again each
// time that a connection is made.
func (c *Config) checkEtcd() []Finding {
	rep := &report{file: c.file}
	e := &c.Etcd
	check := func(key, path string, usable func() error) {
		if path == "" {
			return
		}
		if err := usable(); err != nil {
			c.etcd[key].add(rep, reasonOf(path, err))
		}
	}
	check(keyPassword, e.PasswordFile, func() error {
		data, err := os.ReadFile(e.PasswordFile)
		if line, _, _ := strings.Cut(string(data), "\n"); err == nil && strings.TrimSpace(line) == "" {
			err = errors.New("its first line is empty: put the password there")
		}
		return err
	})
	check(keyCA, e.TLS.CA, func() error {
		data, err := os.ReadFile(e.TLS.CA)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(data) {
			err = errors.New("no PEM certificate is in it")
		}
		return err
	})
	check(keyCert, e.TLS.Cert, func() error {
		_, err := tls.LoadX509KeyPair(e.TLS.Cert, e.TLS.Key)
		return err
	})
	return rep.sorted()
}

// reasonOf says what is wrong with a file, its name once.
func reasonOf(path string, err error) string {
	var why *fs.PathError
	if errors.As(err, &why) {
		return fmt.Sprintf("%s cannot be read: %s", printable(why.Path), why.Err)
	}
	return fmt.Sprintf("%s cannot be used: %s", printable(path), err)
}
