package main

import (
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
