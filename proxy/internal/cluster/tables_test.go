package cluster

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// stored returns the stored form of a base with those members, all of one weight.
func stored(t testing.TB, base *sched.Base, keys ...string) []byte {
	t.Helper()
	var members []sched.Member
	for _, k := range keys {
		members = append(members, sched.Member{Key: k, Weight: 100})
	}
	if _, err := base.Update(members); err != nil {
		t.Fatal(err)
	}
	data, err := base.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (n *node) follows(t testing.TB, want *sched.Base) {
	t.Helper()
	eventually(t, n.name+" follows", func() bool {
		got, follow := n.source.Follow("web", "v4", "", true)
		return follow && got != nil && slices.Equal(got.Owners, want.Owners) && slices.Equal(got.Seats, want.Seats)
	})
}

// owner returns who leads a table in the store.
func owner(m *memory, key string) string {
	it, there := m.get(key)
	if !there {
		return ""
	}
	t, _ := decodeTable(it.value)
	return t.Owner
}

// lead lets a node lead the table of web.
func lead(t testing.TB, m *memory, n *node, data []byte) {
	t.Helper()
	n.source.Lead("web", "v4", "", data)
	eventually(t, n.name+" leads", func() bool { return owner(m, "tables/web/v4") == n.name })
}

func TestOneNodeLeadsATableAndOthersFollow(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	base := new(sched.Base)
	lead(t, m, a, stored(t, base, "x", "y"))
	b.follows(t, base)
	if got, follow := a.source.Follow("web", "v4", "", true); got != nil || follow {
		t.Errorf("the leader follows: %v %t", got, follow)
	}
	// What another one offers is not taken.
	b.source.Lead("web", "v4", "", stored(t, new(sched.Base), "z"))
	lead(t, m, a, stored(t, base, "x", "y", "z"))
	b.follows(t, base)
	<-b.source.TablesChanged()
	if got := b.source.TakeTables(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("changed tables %q", got)
	}
	time.Sleep(10 * pace)
	before := m.count()
	for range 20 {
		b.source.Lead("web", "v4", "", stored(t, new(sched.Base), "z"))
		a.source.Lead("web", "v4", "", stored(t, base, "x", "y", "z"))
		time.Sleep(pace)
	}
	if n := m.count() - before; n > 1 {
		t.Errorf("two nodes that see different things wrote %d times", n)
	}
	if owner(m, "tables/web/v4") != "node-a" {
		t.Error("the table changed hands")
	}
}

func TestTableOfALostNodeIsTakenOver(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	base := new(sched.Base)
	lead(t, m, b, stored(t, base, "x", "y"))
	a.follows(t, base)
	it, _ := m.get(nodesDir + "node-b")
	b.die()
	m.expire(it.lease)
	eventually(t, "a does not follow the dead", func() bool {
		got, follow := a.source.Follow("web", "v4", "", true)
		return got != nil && !follow && slices.Equal(got.Owners, base.Owners)
	})
	lead(t, m, a, stored(t, base, "x"))
	b.start(nil)
	b.follows(t, base) // it does not claim back what it led
}

func TestLeaderGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	base := new(sched.Base)
	lead(t, m, a, stored(t, base, "x", "y"))
	a.stop()
	a.start(nil)
	// Before it knew etcd it made one of its own, as without a state directory.
	a.source.Lead("web", "v4", "", stored(t, new(sched.Base), "stranger"))
	eventually(t, "etcd's is what counts", func() bool {
		got, follow := a.source.Follow("web", "v4", "", true)
		return got != nil && !follow && slices.Equal(got.Owners, base.Owners)
	})
	lead(t, m, a, stored(t, base, "x", "y", "z"))
	b.follows(t, base)
}

func TestTablesOfDifferentFilesAreDifferent(t *testing.T) {
	t.Parallel()
	m, a, b := trio(t)
	a.source.Lead("web", "v4", "aaaa", stored(t, new(sched.Base), "x"))
	b.source.Lead("web", "v4", "bbbb", stored(t, new(sched.Base), "y"))
	eventually(t, "both are there", func() bool {
		return owner(m, "tables/web/v4-aaaa") == "node-a" && owner(m, "tables/web/v4-bbbb") == "node-b"
	})
	// The file of a changes: the table of before is nobody's.
	a.source.Lead("web", "v4", "cccc", stored(t, new(sched.Base), "x", "z"))
	eventually(t, "renamed", func() bool {
		return owner(m, "tables/web/v4-cccc") == "node-a" && owner(m, "tables/web/v4-aaaa") == ""
	})
	b.source.Drop("web")
	eventually(t, "dropped", func() bool { return owner(m, "tables/web/v4-bbbb") == "" })
}

func TestTablesAreWrittenByOneOfMany(t *testing.T) {
	t.Parallel()
	m := newMemory()
	var nodes []*node
	for i := range 5 {
		nodes = append(nodes, newNode(t, fmt.Sprintf("node-%d", i), i+1, m).start(nil))
	}
	for _, n := range nodes {
		eventually(t, "all know all", func() bool { return len(n.source.Nodes()) == len(nodes)-1 })
	}
	time.Sleep(10 * pace)
	before := m.count()
	const tables = 50
	data := stored(t, new(sched.Base), "x", "y")
	for i := range tables {
		for _, n := range nodes {
			n.source.Lead(fmt.Sprint("svc-", i), "v4", "", data)
		}
	}
	eventually(t, "all are there", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		n := 0
		for key := range m.items {
			if strings.HasPrefix(key, tablesDir) {
				n++
			}
		}
		return n == tables
	})
	if n := m.count() - before; n > tables {
		t.Errorf("%d writes for %d tables", n, tables)
	}
}

func TestTableValueIsBoundedAndChecked(t *testing.T) {
	t.Parallel()
	data := stored(t, new(sched.Base), "x", "y", "z")
	value, err := encodeTable("node-a", data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeTable(value)
	if err != nil || got.Owner != "node-a" {
		t.Fatalf("%+v, %v", got, err)
	}
	base, err := got.base()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := base.MarshalBinary(); !bytes.Equal(again, data) {
		t.Error("another base came back")
	}
	for name, bad := range map[string][]byte{
		"no owner": []byte("{}\n"), "no line": []byte("{\"owner\":\"a\"}"), "no JSON": []byte("x\ny"),
	} {
		if _, err := decodeTable(bad); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if got, _ := decodeTable(value[:len(value)-3]); got.Owner != "" {
		if _, err := got.base(); err == nil {
			t.Error("half a base is taken")
		}
	}
	// The largest table there can be still fits.
	var keys []string
	for i := range 3000 {
		keys = append(keys, fmt.Sprintf("node-%d/2001:db8::%x", i%50, i))
	}
	value, err = encodeTable("node-a", stored(t, new(sched.Base), keys...))
	if err != nil {
		t.Error(err)
	}
	t.Logf("a table of %d containers takes %d bytes", len(keys), len(value))
	noise := make([]byte, 2<<20)
	x := uint64(1)
	for i := range noise {
		x = x*6364136223846793005 + 1
		noise[i] = byte(x >> 56)
	}
	if _, err := encodeTable("node-a", noise); err == nil {
		t.Error("a value that etcd would refuse is made")
	}
}
