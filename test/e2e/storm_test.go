package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// stormChanges is how many changes there are, as fast as the proxy takes them.
const stormChanges = 4000

const (
	stormWorkers = 8                     // how many change things at once: each waits until packets feel it
	stormPause   = 30 * time.Millisecond // after each hundred connections: changes are to have the processors too
)

// changer makes changes by the proxy's socket, as the command line does, without a process for each.
func (n *node) changer() *http.Client {
	socket := filepath.Join(n.runDir, "tclb.sock")
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// change drains a backend or sets its weight, and returns when packets feel it.
func change(client *http.Client, address string, what map[string]any) error {
	what["address"] = address
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	request, err := http.NewRequest(http.MethodPatch, "http://tclb/api/v1/services/web/backends", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return err
}

// TestAStormOfChangesFailsNoConnection changes weights and drains of all servers but one, over and over,
// under traffic: no packet may meet an empty or a mixed table.
func TestAStormOfChangesFailsNoConnection(t *testing.T) {
	t.Parallel()
	for _, scheduler := range []string{"maglev", "round-robin", "least-conn"} {
		t.Run(scheduler, func(t *testing.T) {
			p := newPool(t, 4)
			p.configure(scheduler, alike(4))
			before := p.noBackend(t)
			began := time.Now()
			stop := make(chan struct{})
			var changes, traffic sync.WaitGroup
			traffic.Go(func() {
				for drawn := 0; ; drawn++ {
					select {
					case <-stop:
						t.Logf("%d changes/s, %d connections meanwhile", int(stormChanges/time.Since(began).Seconds()), drawn*100)
						return
					default:
						p.client.draw(t, tellFront, 10000+drawn%100*100, 100)
						time.Sleep(stormPause)
					}
				}
			})
			for worker := range stormWorkers {
				changes.Go(func() { p.storm(t, worker) })
			}
			changes.Wait()
			close(stop)
			traffic.Wait()
			if after := p.noBackend(t); after != before {
				t.Errorf("%d packets found no backend", after-before)
			}
			p.noDrift(t, "after the storm")
		})
	}
}

// storm is one source of changes; none ever takes the first server away.
func (p *pool) storm(t *testing.T, worker int) {
	client, random := p.changer(), rand.New(rand.NewPCG(5, uint64(worker)))
	for range stormChanges / stormWorkers {
		server := 1 + random.IntN(len(p.servers)-1)
		what := map[string]any{"drain": random.IntN(2) == 0}
		if random.IntN(2) == 0 {
			what = map[string]any{"weight": fmt.Sprint(random.IntN(300))}
		}
		if err := change(client, p.servers[server].addr[v4].String(), what); err != nil {
			t.Error(err)
			return
		}
	}
}

// noBackend returns how many packets found nobody to go to.
func (n *node) noBackend(t *testing.T) uint64 {
	t.Helper()
	drops, err := n.maps().Drops()
	if err != nil {
		t.Fatal(err)
	}
	for reason, count := range drops {
		if reason.String() == "no-backend" {
			return count
		}
	}
	t.Fatalf("no-backend is not among %v", drops)
	return 0
}
