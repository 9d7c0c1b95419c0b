// Command tclb is the proxy, one per node, and the command line that talks to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
)

// version is set when a release is built: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	os.Exit(run(env{
		args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(),
		dial: new(net.Dialer).DialContext,
	}))
}

// env is all that a command gets from the process that it runs in, so that tests can give it another.
type env struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string // KEY=VALUE
	dial           api.DialFunc
}

// The exit statuses. Scripts rely on them.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitTimeout = 3 // backend drain --wait: connections are left
)

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// usagef returns an error for a command line that makes no sense.
func usagef(format string, args ...any) error {
	return &statusError{exitUsage, fmt.Errorf(format, args...)}
}

// run carries out one command line and returns its exit status. A failure is one line on stderr.
func run(e env) int {
	a := &app{env: e}
	root := newRoot(a)
	root.SetArgs(e.args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)

	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return exitDone
	}
	line := "tclb: " + strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if errors.Is(err, os.ErrPermission) {
		line += ": run this as root"
	}
	status := exitFailed
	var own *statusError
	switch {
	case errors.As(err, &own):
		status = own.status
	case !a.started: // cobra refused the command line
		status = exitUsage
	}
	if status == exitUsage {
		line += fmt.Sprintf(" (see %q)", cmd.CommandPath()+" --help")
	}
	// There is nowhere to report that stderr is gone.
	_, _ = fmt.Fprintln(e.stderr, line)
	return status
}

// app is one run of the command line: what all commands share.
type app struct {
	env
	places
	logLevel, logFormat string

	started bool // the command line was right, and the command runs
}

// newRoot returns the table of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "tclb",
		Short: "Service addresses for containers on hosts without Kubernetes",
		Long: `tclb gives services of containers a virtual address each and balances what is sent there.

"tclb proxy" runs on every node; the other commands ask it through its socket, or work without
it: validate, uninstall, version.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          group,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.resolve(cmd.Flags()); err != nil {
				return err
			}
			a.started = true
			return nil
		},
	}
	a.addGlobalFlags(root.PersistentFlags())
	root.AddCommand(
		newProxy(a),
		newStatus(a),
		newService(a),
		newBackend(a),
		newEndpoint(a),
		newNode(a),
		newConntrack(a),
		newValidate(a),
		newUninstall(a),
		newVersion(a),
	)
	return root
}

// group is the action of a command that only holds others.
func group(cmd *cobra.Command, args []string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			names = append(names, sub.Name())
		}
	}
	want := strings.Join(names, ", ")
	if len(args) > 0 {
		return usagef("unknown command %q for %q: want one of %s", args[0], cmd.CommandPath(), want)
	}
	return usagef("%s needs a command: one of %s", cmd.CommandPath(), want)
}

// client returns a client of the chosen proxy.
func (a *app) client() *api.Client {
	return api.NewClient(a.socket(), a.dial)
}
