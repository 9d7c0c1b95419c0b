package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// isDevice says whether this network namespace has a device. Where that cannot be told, it has.
func isDevice(name string) bool {
	_, err := net.InterfaceByName(name)
	var missing *net.OpError
	return err == nil || !errors.As(err, &missing)
}

func newValidate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check configuration and services files",
		Long: `Check services files and tclb.yaml as the proxy would, without a proxy.

Services files are checked against a tclb.yaml that is among the files or named by --config, else
this node's if it is there: its vipPool, the nodes that it knows, its mode and its uplinks. Devices
of VLANs have to be there.

Each mistake is a line on stdout, file:line:column: key: reason, in the order of the files; their
number goes to stderr, and the exit status is 1.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, files []string) error {
			here := config.Here{Config: a.config, Device: isDevice}
			if a.configExplicit {
				files = append(files, a.config)
			}
			findings, err := config.Validate(files, here)
			for _, f := range findings {
				if err := a.say("%s", f); err != nil {
					return err
				}
			}
			if len(findings) > 0 {
				err = errors.Join(err, fmt.Errorf("%s in %s: correct what the lines name, and validate again",
					counted(len(findings), "finding"), counted(len(files), "file")))
			}
			if err == nil {
				_, _ = fmt.Fprintf(a.stderr, "tclb: %s, no findings\n", counted(len(files), "file"))
			}
			return err
		},
	}
}
