package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

func newNode(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "List and ping the nodes", RunE: group}
	cmd.AddCommand(newNodeList(a), newNodePing(a))
	return cmd
}

var nodeColumns = []column[api.Node]{
	{"NAME", func(n api.Node) string { return n.Name }},
	{"ADDRESS", func(n api.Node) string { return addressOrNone(n.Address) }},
	{"REACHABLE", func(n api.Node) string { return yesNo(n.Reachable) }},
	{"LATENCY", func(n api.Node) string { return latency(n.Latency) }},
	{"LOSS", func(n api.Node) string { return percentOrNone(n.LossRatio) }},
	{"MTU", func(n api.Node) string { return numberOrNone(n.MTU) }},
	{"VERSION", func(n api.Node) string { return n.Version }},
	{"LAST-SEEN", func(n api.Node) string { return timeOrNone(n.LastSeen) }},
	{"NOTES", func(n api.Node) string { return strings.Join(n.Notes, "; ") }},
}

func percentOrNone(ratio *float64) string {
	if ratio == nil {
		return ""
	}
	return strconv.FormatFloat(100**ratio, 'f', 1, 64) + "%"
}

func numberOrNone(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func timeOrNone(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339)
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
