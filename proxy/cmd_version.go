package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.say("tclb %s, map layout v%d, %s %s/%s", version, datapath.LayoutVersion,
				runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}
