package main

import (
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

func newStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the proxy of this node is doing",
		Long: `Show how the proxy of this node is doing, with a line for every problem: mistakes in files,
what could not be written into the maps, and what is full.`,
		Args: cobra.NoArgs,
	}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		st, err := a.client().Status(cmd.Context())
		if err != nil {
			return err
		}
		if *output != formatTable {
			return printValue(a.stdout, *output, st)
		}
		return a.printStatus(st)
	}
	return cmd
}

func (a *app) printStatus(st api.Status) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	// A tabwriter keeps the first error for Flush.
	line := func(key, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", key, printable(fmt.Sprintf(format, args...)))
	}
	line("Name:", "%s", st.Name)
	line("Address:", "%s", cell(addressOrNone(st.Address)))
	line("Version:", "%s", st.Version)
	line("Mode:", "%s", modeOf(st))
	line("Ready:", "%s", yesNo(st.Ready))
	line("Uptime:", "%s", seconds(st.UptimeSeconds))
	line("Revision:", "%d (in the maps: %d)", st.Revision, st.Applied)
	line("Services:", "%d", st.Counts.Services)
	line("Backends:", "%d", st.Counts.Backends)
	line("Endpoints:", "%d", st.Counts.Endpoints)
	if n := len(st.Unattached); n > 0 {
		line("Unattached:", "%d (restart them)", n)
	}
	line("Nodes:", "%d", st.Counts.Nodes)
	if e := st.Etcd; e != nil {
		line("Etcd:", "%s", etcdState(e))
	}
	line("Conntrack:", "%d of %d", st.Conntrack.Entries, st.Conntrack.Capacity)
	for _, r := range st.Conntrack.Rooms {
		line("  "+r.Name+":", "%d of %d, %d evicted", r.Entries, r.Capacity, r.Evictions)
	}
	line("Maps:", "%s", mapUse(st.Maps))
	if len(st.Problems) == 0 {
		line("Problems:", "none")
	} else {
		line("Problems:", "%d", len(st.Problems))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	for _, p := range st.Problems {
		if err := a.say("  %s", p); err != nil {
			return err
		}
	}
	return nil
}

// modeOf returns "userspace (BPF is not permitted: ...)", for example.
func modeOf(st api.Status) string {
	mode := st.Mode
	if st.HostStack {
		mode += ", host stack"
	}
	if st.ModeReason != "" {
		mode += " (" + st.ModeReason + ")"
	}
	return mode
}

// etcdState returns "connected, 2 other nodes", or why it is not.
func etcdState(e *api.Etcd) string {
	if !e.Connected {
		return "not connected: " + e.Error
	}
	text := fmt.Sprintf("connected, %d other nodes", e.Nodes)
	if e.Lost > 0 {
		text += fmt.Sprintf(", %d lost", e.Lost)
	}
	return text
}

// mapUse returns "frontends 3 of 65536, backends 9 of 262144".
func mapUse(maps []api.MapStatus) string {
	words := make([]string, 0, len(maps))
	for _, m := range maps {
		words = append(words, fmt.Sprintf("%s %d of %d", m.Name, m.Entries, m.Capacity))
	}
	return strings.Join(words, ", ")
}

// addressOrNone returns the address, or "" for the zero value.
func addressOrNone(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
