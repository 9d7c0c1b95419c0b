package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFilesOfEtcdMustBeUsable(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, directory{"empty": "\n", "password": "secret\n", "no.pem": "no certificate"})
	at := func(name string) string { return filepath.Join(dir, name) }
	for text, want := range map[string]string{
		"user: tclb, passwordFile: " + at("password"):                    "",
		"user: tclb, passwordFile: " + at("none"):                        ":1:63: etcd.passwordFile: " + at("none") + " cannot be read: no such file",
		"user: tclb, passwordFile: " + at("empty"):                       "its first line is empty",
		"tls: {ca: " + at("none") + "}":                                  "etcd.tls.ca: " + at("none") + " cannot be read",
		"tls: {ca: " + at("no.pem") + "}":                                "no PEM certificate is in it",
		"tls: {cert: " + at("no.pem") + ", key: " + at("password") + "}": "etcd.tls.cert: ",
	} {
		path := at("tclb.yaml")
		if err := os.WriteFile(path, []byte("etcd: {endpoints: [127.0.0.1:2379], "+text+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, findings, err := Load(path, true)
		validated, errValidate := Validate([]string{path}, Here{})
		if err != nil || errValidate != nil || len(validated) != len(findings) {
			t.Fatalf("%s: %v %v, %v and %v", text, err, errValidate, findings, validated)
		}
		switch {
		case want == "" && (c == nil || len(findings) > 0):
			t.Errorf("%s: %v", text, findings)
		case want != "" && (c != nil || len(findings) != 1 || !strings.Contains(findings[0].String(), want)):
			t.Errorf("%s: %v, want %q", text, findings, want)
		}
	}
}
