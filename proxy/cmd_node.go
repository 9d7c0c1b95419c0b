package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

func newNode(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "List the nodes", RunE: group}
	cmd.AddCommand(newNodeList(a))
	return cmd
}

var nodeColumns = []column[api.Node]{
	{"NAME", func(n api.Node) string { return n.Name }},
	{"ADDRESS", func(n api.Node) string { return addressOrNone(n.Address) }},
	{"REACHABLE", func(n api.Node) string { return yesNo(n.Reachable) }},
	{"MTU", func(n api.Node) string { return mtuOrNone(n.MTU) }},
}

// mtuOrNone returns the MTU, or "" for this node, to which there is no tunnel.
func mtuOrNone(mtu uint32) string {
	if mtu == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(mtu), 10)
}

func newNodeList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List nodes, this one included", Args: cobra.NoArgs}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rows, err := a.client().Nodes(cmd.Context())
		if err != nil {
			return err
		}
		return printRows(a.stdout, *output, rows, nodeColumns)
	}
	return cmd
}
