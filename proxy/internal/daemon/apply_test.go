package daemon

import (
	"strings"
	"testing"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

func TestSplitKeepsServicesAsWritten(t *testing.T) {
	const text = `
services:
- &first
  name: one # the first
  ports: &ports [{protocol: tcp, port: 80}]
  vips: [10.97.0.1]
- name: two
  ports: *ports
  vips: [10.97.0.2]
`
	files, err := split([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Fatalf("%d files, want 2", len(files))
	}
	for name, data := range files {
		f := config.ParseServices(ownFile(name), ownFile(name), data)
		if len(f.Findings) > 0 || len(f.Services) != 1 || f.Services[0].Service.Name != name {
			t.Errorf("%s: %d services, findings %v in\n%s", name, len(f.Services), f.Findings, data)
		}
		if ports := f.Services[0].Service.Ports; len(ports) != 1 || ports[0].Port != 80 {
			t.Errorf("%s: ports %v, want port 80", name, ports)
		}
		if strings.ContainsAny(string(data), "&*") {
			t.Errorf("%s: anchors are left in\n%s", name, data)
		}
	}
	if !strings.Contains(string(files["one"]), "# the first") {
		t.Errorf("the comment is lost in\n%s", files["one"])
	}
	if !config.Counts(ownFile("one")) {
		t.Errorf("%s is no services file", ownFile("one"))
	}
}
