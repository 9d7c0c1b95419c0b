package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// hexShown is how much of a random id a table shows: what the runtimes' own listings show.
const hexShown = 12

// shortID shortens a container's id. With containerd a namespace is before it, and ctr's ids are
// names, which are not shortened: what is left names the container in commands.
func shortID(id string) string {
	start := strings.LastIndexByte(id, '-') + 1
	if strings.Trim(id[start:], "0123456789abcdef") != "" {
		return id
	}
	return id[:min(start+hexShown, len(id))]
}

func newEndpoint(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "endpoint", Short: "List the attached containers of this node, drain them", RunE: group}
	cmd.AddCommand(newEndpointList(a), newEndpointDrain(a), newEndpointUndrain(a))
	return cmd
}

var endpointColumns = []column[api.Endpoint]{
	{"CONTAINER", func(e api.Endpoint) string { return shortID(e.ContainerID) }},
	{"NAME", func(e api.Endpoint) string { return e.Container }},
	{"IFNAME", func(e api.Endpoint) string { return e.Ifname }},
	{"HOST-INTERFACE", func(e api.Endpoint) string { return e.HostInterface }},
	{"NETWORK", func(e api.Endpoint) string { return e.Network }},
	{"ADDRESSES", func(e api.Endpoint) string { return joined(e.Addresses) }},
	{"SERVICES", func(e api.Endpoint) string { return strings.Join(e.Services, ",") }},
	{"NOTES", func(e api.Endpoint) string { return strings.Join(e.Notes, "; ") }},
}

func newEndpointList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List attached containers", Args: cobra.NoArgs}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rows, err := a.client().Endpoints(cmd.Context())
		if err != nil {
			return err
		}
		return printRows(a.stdout, *output, rows, endpointColumns)
	}
	return cmd
}
