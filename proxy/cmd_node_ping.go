package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// pingEvery is the time between two pings.
const pingEvery = 250 * time.Millisecond

func newNodePing(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ping NAME",
		Short: "Send probes to a node through the tunnel",
		Long: `Sends probes to a node through the tunnel and shows what comes back. The other node's datapath answers, not
its proxy. Interrupt it to see the summary early.`,
		Args: cobra.ExactArgs(1),
	}
	count := cmd.Flags().UintP("count", "c", 4, "number of probes; 0 goes on until interrupted")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		client := a.client()
		defer client.Close()
		p := pinger{app: a, quiet: *output != formatTable, pongs: []api.Pong{}}
		err := p.run(ctx, client, args[0], int(*count))
		if err == nil && *output != formatTable {
			err = printValue(a.stdout, *output, p.pongs)
		} else if err == nil {
			err = p.summary()
		}
		if err == nil && p.answered == 0 {
			err = fmt.Errorf("no answer from node %s to %s: is its tunnel port open, and its tclb there?", args[0], counted(len(p.pongs), "probe"))
		}
		return err
	}
	return cmd
}

// pinger shows pings and adds them up.
type pinger struct {
	app      *app
	quiet    bool // only the result is shown
	pongs    []api.Pong
	answered int

	least, most, total float64 // seconds of the answered ones
}

// run pings until it has done so often enough, or ctx ends.
func (p *pinger) run(ctx context.Context, client *api.Client, node string, count int) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		pong, err := client.Ping(ctx, node)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		pong.Sequence = n
		if err := p.show(pong); err != nil {
			return err
		}
		if n == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// show takes in one ping.
func (p *pinger) show(pong api.Pong) error {
	p.pongs = append(p.pongs, pong)
	if pong.Answered {
		if p.answered == 0 || pong.Seconds < p.least {
			p.least = pong.Seconds
		}
		p.most = max(p.most, pong.Seconds)
		p.total += pong.Seconds
		p.answered++
	}
	switch {
	case p.quiet:
		return nil
	case pong.Answered:
		return p.app.say("%d bytes from %s (%s): seq=%d time=%s", pong.Size, pong.Node, pong.Address, pong.Sequence, latency(&pong.Seconds))
	}
	return p.app.say("no answer from %s (%s): seq=%d", pong.Node, pong.Address, pong.Sequence)
}

// summary writes the last line.
func (p *pinger) summary() error {
	if len(p.pongs) == 0 {
		return nil
	}
	lost := float64(len(p.pongs)-p.answered) / float64(len(p.pongs))
	line := fmt.Sprintf("%s, %d answered, %s lost", counted(len(p.pongs), "probe"), p.answered, percentOrNone(&lost))
	if p.answered > 0 {
		mean := p.total / float64(p.answered)
		line += fmt.Sprintf(", time min/avg/max %s/%s/%s", latency(&p.least), latency(&mean), latency(&p.most))
	}
	return p.app.say("%s", line)
}
