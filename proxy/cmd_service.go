package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// maxApply is the largest file that apply reads; the proxy refuses larger ones.
const maxApply = 8 << 20

func newService(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "service", Short: "List, define and delete services", RunE: group}
	cmd.AddCommand(newServiceList(a), newServiceGet(a), newServiceApply(a), newServiceDelete(a))
	return cmd
}

var serviceColumns = []column[api.Service]{
	{"NAME", func(s api.Service) string { return s.Name }},
	{"VIPS", func(s api.Service) string { return joined(s.VIPs) }},
	{"PORTS", func(s api.Service) string { return servicePorts(s.Ports) }},
	{"SCHEDULER", func(s api.Service) string { return s.Scheduler }},
	{"BACKENDS", func(s api.Service) string { return strconv.Itoa(len(s.Backends)) }},
}

func newServiceList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List services", Args: cobra.NoArgs}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rows, err := a.client().Services(cmd.Context())
		if err != nil {
			return err
		}
		return printRows(a.stdout, *output, rows, serviceColumns)
	}
	return cmd
}

func newServiceGet(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "get NAME", Short: "Show one service with its backends", Args: cobra.ExactArgs(1)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		svc, err := a.client().Service(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if err := printRows(a.stdout, *output, []api.Service{svc}, serviceColumns); err != nil || *output != formatTable {
			return err
		}
		if err := a.say(""); err != nil {
			return err
		}
		return printRows(a.stdout, formatTable, svc.Backends, serviceBackendColumns)
	}
	return cmd
}

// serviceBackendColumns are what one wants to know of backends when one looks at their service.
var serviceBackendColumns = []column[api.Backend]{
	{"ADDRESS", func(b api.Backend) string { return b.Address.String() }},
	{"PORT", func(b api.Backend) string { return strconv.Itoa(int(b.Port)) }},
	{"PROTOCOL", func(b api.Backend) string { return b.Protocol }},
	{"NODE", func(b api.Backend) string { return b.Node }},
	{"WEIGHT", func(b api.Backend) string { return strconv.Itoa(b.Weight) }},
	{"SHARE", func(b api.Backend) string { return percent(b.Share) }},
	{"ACTIVE", func(b api.Backend) string { return strconv.FormatUint(b.ActiveConnections, 10) }},
	{"TOTAL", func(b api.Backend) string { return strconv.FormatUint(b.TotalConnections, 10) }},
	{"LATENCY", func(b api.Backend) string { return latency(b.Latency) }},
	{"STATE", func(b api.Backend) string { return b.State }},
	{"SINCE", func(b api.Backend) string { return b.Since.Format(time.RFC3339) }},
}

// percent shows a share; none is nothing.
func percent(share *float64) string {
	if share == nil {
		return ""
	}
	return strconv.FormatFloat(100**share, 'f', 1, 64) + "%"
}

// latency shows a time in seconds; one that was not measured is nothing.
func latency(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	return time.Duration(*seconds * float64(time.Second)).Round(time.Microsecond).String()
}

func newServiceApply(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "apply -f FILE|-",
		Short: "Create or replace services",
		Long: `Create or replace the services of a services file; - reads standard input.

All of them are checked first, and with one mistake none is changed. They survive a restart,
and end with "tclb service delete". A service that a file of yours defines is changed there.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("service apply needs -f FILE, or -f - for standard input")
			}
			name, content, err := a.readFile(file)
			if err != nil {
				return err
			}
			applied, err := a.client().Apply(cmd.Context(), name, content)
			if err != nil {
				return a.showFindings(err)
			}
			for _, s := range applied.Services {
				if err := a.say("service %s applied", s); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "services file, or - for standard input")
	return cmd
}

// readFile returns the content of a file or of stdin, and what findings call it. It reads one
// byte more than is allowed, for the proxy to say how much that is.
func (a *app) readFile(file string) (name string, content []byte, err error) {
	name, in := "stdin", a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", nil, err
		}
		defer func() { _ = f.Close() }()
		name, in = file, f
	}
	content, err = io.ReadAll(io.LimitReader(in, maxApply+1))
	if err != nil {
		return "", nil, fmt.Errorf("read %s: %w", name, err)
	}
	return name, content, nil
}

// showFindings prints the findings that came with a refusal on stdout, as validate does.
func (a *app) showFindings(err error) error {
	var refusal *api.Error
	if !errors.As(err, &refusal) || len(refusal.Findings) == 0 {
		return err
	}
	for _, f := range refusal.Findings {
		if err := a.say("%s", f); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s, nothing was changed: correct the file and apply it again", counted(len(refusal.Findings), "finding"))
}

func newServiceDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: `Delete a service that "service apply" made`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.client().DeleteService(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.say("service %s deleted", args[0])
		},
	}
}

// servicePorts returns "tcp/80:8080,udp/53".
func servicePorts(ports []api.Port) string {
	words := make([]string, 0, len(ports))
	for _, p := range ports {
		word := fmt.Sprintf("%s/%d", p.Protocol, p.Port)
		if p.TargetPort != p.Port {
			word += fmt.Sprintf(":%d", p.TargetPort)
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}

// joined returns the elements with commas between them.
func joined[T fmt.Stringer](list []T) string {
	words := make([]string, 0, len(list))
	for _, e := range list {
		words = append(words, e.String())
	}
	return strings.Join(words, ",")
}
