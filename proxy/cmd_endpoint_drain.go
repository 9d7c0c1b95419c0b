package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

func newEndpointDrain(a *app) *cobra.Command {
	var wait waitFlag
	cmd := &cobra.Command{
		Use:   "drain CONTAINER",
		Short: "Give a container no new connections, in all its services",
		Long: `Give a container no new connections, in all services that it serves; those that it has go on.
CONTAINER is its id, the first 12 characters of it or more, or its name.

With --wait it returns when the last connection is gone, with --wait=TIMEOUT at the latest after
that time, then with exit status 3: what a stop hook runs before it stops the container. The
drain ends with the container, or with "tclb endpoint undrain".`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Var(&wait, "wait", "wait until its last connection is gone, at most `TIMEOUT` (such as 30s)")
	cmd.Flags().Lookup("wait").NoOptDefVal = waitForever
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		served, err := a.setDrain(cmd.Context(), args[0], true)
		if err != nil {
			return err
		}
		if err := a.say("container %s: draining in %s", args[0], counted(len(served), "service")); err != nil || !wait.given {
			return err
		}
		return a.waitServed(cmd.Context(), args[0], served, wait.timeout)
	}
	return cmd
}

func newEndpointUndrain(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "undrain CONTAINER",
		Short: "Undo a drain in all its services",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			served, err := a.setDrain(cmd.Context(), args[0], false)
			if err != nil {
				return err
			}
			return a.say("container %s: no longer drained in %s", args[0], counted(len(served), "service"))
		},
	}
}

// serving is a service and the addresses by which a container serves it.
type serving struct {
	service   string
	addresses []netip.Addr
}

// setDrain drains a container, or ends that, in every service that it serves. One that serves none is
// no error: a stop hook has nothing to wait for then.
func (a *app) setDrain(ctx context.Context, container string, drain bool) ([]serving, error) {
	client := a.client()
	served, err := servedBy(ctx, client, container)
	if err != nil {
		return nil, err
	}
	for _, s := range served {
		for _, address := range s.addresses {
			if _, err := client.Override(ctx, s.service, api.Override{Address: address.String(), Drain: &drain}); err != nil {
				return nil, err
			}
		}
	}
	return served, nil
}

// servedBy finds what a container serves, by the name of a service that it joined or by its address
// in a file.
func servedBy(ctx context.Context, client *api.Client, container string) ([]serving, error) {
	endpoints, err := client.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	for _, e := range endpoints {
		if e.ContainerID == container || e.Container == container ||
			len(container) >= hexShown && strings.HasPrefix(e.ContainerID, container) {
			addresses = append(addresses, e.Addresses...)
		}
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("container %q is not attached here: tclb endpoint list shows who is", container)
	}
	backends, err := client.Backends(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []serving
	for _, b := range backends { // by service
		if !b.Local || !slices.Contains(addresses, b.Address) {
			continue
		}
		if len(out) == 0 || out[len(out)-1].service != b.Service {
			out = append(out, serving{service: b.Service})
		}
		last := &out[len(out)-1]
		if !slices.Contains(last.addresses, b.Address) {
			last.addresses = append(last.addresses, b.Address)
		}
	}
	return out, nil
}

// waitServed returns when a container has no connections left in any of its services.
func (a *app) waitServed(ctx context.Context, container string, served []serving, timeout time.Duration) error {
	client := a.client()
	return waitQuiet(ctx, timeout, func() (uint64, error) {
		var left uint64
		for _, s := range served {
			n, err := connectionsLeft(ctx, client, s.service, "", api.Overridden{Addresses: s.addresses})
			if err != nil {
				return 0, err
			}
			left += n
		}
		return left, nil
	}, "container "+container)
}
