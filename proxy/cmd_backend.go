package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// drainPoll is how often a waiting drain looks at the connections.
const drainPoll = 200 * time.Millisecond

func newBackend(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backend",
		Short: "List backends, drain them, change their weight",
		Long: `List backends, drain them, change their weight.

ADDRESS is an address, NODE/ADDRESS, DEVICE.ID/ADDRESS of one in a VLAN, or the id or name of an
attached container. A drain or a weight set here wins over the services file and survives reloads and restarts.`,
		RunE: group,
	}
	cmd.AddCommand(newBackendList(a), newBackendDrain(a), newBackendUndrain(a), newBackendWeight(a))
	return cmd
}

var backendColumns = []column[api.Backend]{
	{"SERVICE", func(b api.Backend) string { return b.Service }},
	{"ADDRESS", func(b api.Backend) string { return b.Address.String() }},
	{"PORT", func(b api.Backend) string { return strconv.Itoa(int(b.Port)) }},
	{"PROTOCOL", func(b api.Backend) string { return b.Protocol }},
	{"NODE", nodeOrVLAN},
	{"WEIGHT", func(b api.Backend) string { return strconv.Itoa(b.Weight) }},
	{"STATE", func(b api.Backend) string { return b.State }},
	{"ACTIVE", func(b api.Backend) string { return strconv.FormatUint(b.ActiveConnections, 10) }},
	{"TOTAL", func(b api.Backend) string { return strconv.FormatUint(b.TotalConnections, 10) }},
	{"LOCAL", func(b api.Backend) string { return yesNo(b.Local) }},
}

// nodeOrVLAN is where a backend's address is unique.
func nodeOrVLAN(b api.Backend) string {
	if b.VLAN == nil {
		return b.Node
	}
	return lb.VLAN{Device: b.VLAN.Device, ID: b.VLAN.ID}.Name()
}

func newBackendList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list [SERVICE]", Short: "List backends, one row per service port", Args: cobra.MaximumNArgs(1)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		service := ""
		if len(args) > 0 {
			service = args[0]
		}
		rows, err := a.client().Backends(cmd.Context(), service)
		if err != nil {
			return err
		}
		return printRows(a.stdout, *output, rows, backendColumns)
	}
	return cmd
}

func newBackendDrain(a *app) *cobra.Command {
	var wait waitFlag
	cmd := &cobra.Command{
		Use:   "drain SERVICE ADDRESS",
		Short: "Give a backend no new connections",
		Long: `Give a backend no new connections; those that it has go on.

With --wait it returns when the last of them is gone, with --wait=TIMEOUT at the latest after
that time, then with exit status 3. Undo it with "tclb backend undrain".`,
		Args: cobra.ExactArgs(2),
	}
	cmd.Flags().Var(&wait, "wait", "wait until its last connection is gone, at most `TIMEOUT` (such as 30s)")
	cmd.Flags().Lookup("wait").NoOptDefVal = waitForever
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		drain := true
		done, err := a.client().Override(cmd.Context(), args[0], api.Override{Address: args[1], Drain: &drain})
		if err != nil {
			return err
		}
		if err := a.say("backend %s of service %s: draining", args[1], args[0]); err != nil || !wait.given {
			return err
		}
		return a.waitDrained(cmd.Context(), args[0], args[1], done, wait.timeout)
	}
	return cmd
}

// waitForever is the timeout of --wait without one.
const waitForever = "forever"

// waitFlag is the value of --wait. It implements pflag.Value.
type waitFlag struct {
	given   bool
	timeout time.Duration // 0 = none
}

// Set implements pflag.Value.
func (f *waitFlag) Set(s string) error {
	if s == waitForever {
		*f = waitFlag{given: true}
		return nil
	}
	timeout, err := time.ParseDuration(s)
	if err != nil || timeout <= 0 {
		return fmt.Errorf("want a time above 0, such as 30s or 5m")
	}
	*f = waitFlag{given: true, timeout: timeout}
	return nil
}

// String implements pflag.Value.
func (f *waitFlag) String() string { return "" }

// Type implements pflag.Value.
func (f *waitFlag) Type() string { return "duration" }

// waitDrained returns when the backends have no connections left. Zero means no limit.
func (a *app) waitDrained(ctx context.Context, service, word string, done api.Overridden, timeout time.Duration) error {
	client := a.client()
	return waitQuiet(ctx, timeout, func() (uint64, error) {
		return connectionsLeft(ctx, client, service, word, done)
	}, fmt.Sprintf("backend %s of service %s", word, service))
}

// waitQuiet returns when nothing is left, or after the timeout, if that is not 0, with its own status.
func waitQuiet(ctx context.Context, timeout time.Duration, count func() (uint64, error), who string) error {
	var limit <-chan time.Time
	if timeout > 0 {
		limit = time.After(timeout)
	}
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	// Two looks without a connection: one that was shaking hands when the drain came is none yet.
	for quiet := 0; ; {
		left, err := count()
		if err != nil {
			return err
		}
		if quiet++; left > 0 {
			quiet = 0
		}
		if quiet == 2 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
		case <-limit:
			return &statusError{exitTimeout, fmt.Errorf("%s still has %s after %s: wait longer, or stop it anyway",
				who, counted(int(left), "connection"), timeout)}
		}
	}
}

// connectionsLeft counts the active connections of the backends, which the user called word. A backend that is not
// listed any more has none; one of the same address on another node or VLAN is another one.
func connectionsLeft(ctx context.Context, client *api.Client, service, word string, done api.Overridden) (uint64, error) {
	rows, err := client.Backends(ctx, service)
	if err != nil {
		return 0, err
	}
	place, _, placed := strings.Cut(word, "/")
	var left uint64
	for _, b := range rows {
		if slices.Contains(done.Addresses, b.Address) && (!placed || nodeOrVLAN(b) == place) {
			left += b.ActiveConnections
		}
	}
	return left, nil
}

func newBackendUndrain(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "undrain SERVICE ADDRESS",
		Short: "Undo a drain",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			drain := false
			_, err := a.client().Override(cmd.Context(), args[0], api.Override{Address: args[1], Drain: &drain})
			if err != nil {
				return err
			}
			return a.say("backend %s of service %s: no longer drained", args[1], args[0])
		},
	}
}

func newBackendWeight(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "weight SERVICE ADDRESS N|default",
		Short: "Set a backend's weight, 0 to 1000",
		Long: `Set a backend's weight, 0 to 1000; 0 is maintenance: no new connections.

"default" gives it the weight of its configuration back.`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := api.ParseWeight(args[2]); err != nil {
				return &statusError{exitUsage, err}
			}
			_, err := a.client().Override(cmd.Context(), args[0], api.Override{Address: args[1], Weight: args[2]})
			if err != nil {
				return err
			}
			return a.say("backend %s of service %s: weight %s", args[1], args[0], args[2])
		},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
