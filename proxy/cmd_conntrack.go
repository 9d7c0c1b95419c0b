package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

func newConntrack(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "conntrack", Short: "List and flush tracked connections", RunE: group}
	cmd.AddCommand(newConntrackList(a), newConntrackFlush(a))
	return cmd
}

var conntrackColumns = []column[api.Flow]{
	{"PROTOCOL", func(f api.Flow) string { return f.Protocol }},
	{"CLIENT", func(f api.Flow) string { return f.Client.String() }},
	{"VIP", func(f api.Flow) string { return f.VIP.String() }},
	{"BACKEND", func(f api.Flow) string { return f.Backend.String() }},
	{"STATE", func(f api.Flow) string { return f.State }},
	{"SERVICE", func(f api.Flow) string { return f.Service }},
	{"NODE", func(f api.Flow) string { return f.Node }},
	{"AGE", func(f api.Flow) string { return seconds(f.AgeSeconds) }},
	{"EXPIRES", func(f api.Flow) string { return seconds(f.ExpiresSeconds) }},
	{"PACKETS", func(f api.Flow) string { return strconv.FormatUint(f.Packets, 10) }},
	{"BYTES", func(f api.Flow) string { return strconv.FormatUint(f.Bytes, 10) }},
}

func newConntrackList(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{Use: "list", Short: "List tracked connections", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&service, "service", "", "only those of the service `NAME`")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rows, err := a.client().Flows(cmd.Context(), service)
		if err != nil {
			return err
		}
		return printRows(a.stdout, *output, rows, conntrackColumns)
	}
	return cmd
}

func newConntrackFlush(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "flush",
		Short: "Forget tracked connections and what binds clients to backends",
		Long: `Forget tracked connections and session affinity.

Connections that go on are tracked anew where their backend is a function of the packet, else
they are reset.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("service") && service == "" {
				return usagef("--service is empty: give a name, or leave it out for all")
			}
			flushed, err := a.client().Flush(cmd.Context(), service)
			if err != nil {
				return err
			}
			return a.say("removed %s and %s of affinity", counted(flushed.Pairs, "pair"), entries(flushed.Affinities))
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "only those of the service `NAME`")
	return cmd
}

func seconds(n int64) string { return (time.Duration(n) * time.Second).String() }

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return strconv.Itoa(n) + " entries"
}
