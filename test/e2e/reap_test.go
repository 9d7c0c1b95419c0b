package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func TestContainerThatDiesWithoutDELIsReaped(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	dying, staying := n.container(t, "dying", members), n.container(t, "staying", members)
	dying.serve(targetPort)
	staying.serve(targetPort)
	client := n.container(t, "client", n.bridged())
	n.waitForBackends("web", 8)

	dying.vanish()
	n.waitForBackends("web", 4)
	expectServers(t, client, front(vip(10), v4), staying.name)
	n.expectEndpoints(t, staying, client)

	// The same while no proxy is there to see it.
	n.stop()
	staying.vanish()
	n.start()
	n.waitForBackends("web", 0)
	n.expectEndpoints(t, client)
}

// expectEndpoints checks that these containers, and no others, are attached: listing, files, pins.
func (n *node) expectEndpoints(t *testing.T, want ...*container) {
	t.Helper()
	eventually(t, 5*time.Second, fmt.Sprintf("%d containers are attached", len(want)), func() error {
		rows := list[[]endpointRow](n, "endpoint", "list")
		found := files(t, filepath.Join(n.runDir, "endpoints"))
		if len(rows) != len(want) || len(found) != len(want) {
			return fmt.Errorf("listed %+v, files %v", rows, found)
		}
		for _, c := range want {
			id := registry.EndpointID(c.id, "eth0")
			if _, err := os.Stat(filepath.Join(n.bpffs, layout, "links", id+"-in")); err != nil {
				return err
			}
		}
		if left := n.attachments(t); len(left) != len(want)*(2+1+1+2) { // pins, file, veth, addresses
			return fmt.Errorf("attachments %v", left)
		}
		return nil
	})
}

func TestAttachmentsOfAnotherBootAreReaped(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.writeServices("web.yaml", service("web", vip(10)))
	old, new := n.container(t, "old", n.bridged(conf{"services": []string{"web"}})), n.container(t, "new", n.bridged())
	boot, err := registry.BootID()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.runDir, "endpoints", registry.EndpointID(old.id, "eth0")+".json")
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(boot)) {
		t.Fatalf("%s does not name the boot: %v", data, err)
	}
	n.write(path, string(bytes.ReplaceAll(data, []byte(boot), []byte("11111111-2222-3333-4444-555555555555"))))
	n.start()
	n.waitForBackends("web", 0)
	eventually(t, 5*time.Second, "its file is gone", func() error {
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("%s is there", path)
		}
		return nil
	})
	if rows := list[[]endpointRow](n, "endpoint", "list"); len(rows) != 1 || rows[0].ContainerID != new.id {
		t.Errorf("endpoints %+v, want %s", rows, new.id)
	}
}

func TestAHundredContainersLeaveNothing(t *testing.T) {
	t.Parallel()
	const (
		count  = 100
		atOnce = 16
	)
	// Each change of members is a new table, and old ones are kept for packets in flight.
	n := newNode(t, "datapath: {maxServices: 256, maxBackends: 1024, tableSlots: 1048576}")
	n.writeServices("web.yaml", service("web", vip(10)))
	n.start()
	members := n.bridged(conf{"services": []string{"web"}})
	containers := make([]*container, count)
	for i := range containers {
		containers[i] = n.newContainer(t, fmt.Sprintf("c%d", i))
	}
	parallel := func(what string, f func(*container) error) {
		t.Helper()
		var all sync.WaitGroup
		turn := make(chan struct{}, atOnce)
		for _, c := range containers {
			all.Go(func() {
				turn <- struct{}{}
				defer func() { <-turn }()
				if err := f(c); err != nil {
					t.Errorf("%s %s: %v", what, c.id, err)
				}
			})
		}
		all.Wait()
	}
	parallel("ADD", func(c *container) error { return c.add(members, "eth0") })
	n.waitForBackends("web", count*4)
	n.expectEndpoints(t, containers...)
	parallel("DEL", func(c *container) error { return c.del(members, "eth0") })
	n.waitForBackends("web", 0)
	n.expectNoAttachment(t)
	eventually(t, 5*time.Second, "no record of a backend is left", func() error {
		left, err := n.maps().Backends()
		for id, b := range left {
			if id != 0 && (b.Live || b.New) {
				return fmt.Errorf("backend %d: %+v", id, b)
			}
		}
		return err
	})
}
