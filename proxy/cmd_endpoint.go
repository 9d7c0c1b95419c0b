package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// shortID is how much of a container's id a table shows: what the runtimes' own listings show.
const shortID = 12

func newEndpoint(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "endpoint", Short: "List the attached containers of this node", RunE: group}
	cmd.AddCommand(newEndpointList(a))
	return cmd
}

var endpointColumns = []column[api.Endpoint]{
	{"CONTAINER", func(e api.Endpoint) string { return e.ContainerID[:min(shortID, len(e.ContainerID))] }},
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
