package main

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

func pong(took time.Duration) view.Pong {
	return view.Pong{Address: netip.MustParseAddr("192.0.2.12"), Size: 92, Answered: took > 0, Took: took}
}

func TestNodePing(t *testing.T) {
	cases := []struct {
		line  string
		pongs []view.Pong
		want  result
	}{
		{
			"node ping node-b -c 3",
			[]view.Pong{pong(412 * time.Microsecond), pong(0), pong(600 * time.Microsecond)},
			result{exitDone, "92 bytes from node-b (192.0.2.12): seq=1 time=412µs\n" +
				"no answer from node-b (192.0.2.12): seq=2\n" +
				"92 bytes from node-b (192.0.2.12): seq=3 time=600µs\n" +
				"3 probes, 2 answered, 33.3% lost, time min/avg/max 412µs/506µs/600µs\n", ""},
		},
		{
			"node ping node-b -c 1", nil,
			result{
				exitFailed, "no answer from node-b (192.0.2.12): seq=1\n1 probe, 0 answered, 100.0% lost\n",
				"tclb: no answer from node node-b to 1 probe: is its tunnel port open, and its tclb there?\n",
			},
		},
		{"node ping nope", nil, result{exitFailed, "", "tclb: node \"nope\": no such node\n"}},
		{"node ping switch", nil, result{exitFailed, "", "tclb: node \"switch\" cannot be pinged: it is plain\n"}},
	}
	for _, c := range cases {
		n := startNode(t)
		n.view.Pongs = c.pongs
		if got := n.run(t, c.line); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.line, got, c.want)
		}
	}
}

func TestNodePingAsJSON(t *testing.T) {
	n := startNode(t)
	n.view.Pongs = []view.Pong{pong(time.Millisecond)}
	got := n.run(t, "node ping node-b -c 2 -o json")
	var pongs []api.Pong
	if err := json.Unmarshal([]byte(got.stdout), &pongs); err != nil || got.status != exitDone || len(pongs) != 2 {
		t.Fatalf("%+v: %v", got, err)
	}
	want := api.Pong{Node: "node-b", Address: netip.MustParseAddr("192.0.2.12"), Sequence: 1, Size: 92, Answered: true, Seconds: 0.001}
	if pongs[0] != want || pongs[1].Answered || pongs[1].Sequence != 2 {
		t.Errorf("%+v", pongs)
	}
}
