package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
)

// Where things are unless flags or environment say otherwise.
const (
	defaultRunDir   = "/run/tclb"
	defaultStateDir = "/var/lib/tclb"
)

// places are the directories and files of one node. Several nodes on one machine differ in them.
type places struct {
	bpffs, runDir, stateDir, config string

	configExplicit bool // then a missing file is an error
}

func (a *app) addGlobalFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.bpffs, "bpffs", datapath.DefaultBPFFS, "directory of the pinned maps and programs (TCLB_BPFFS)")
	flags.StringVar(&a.runDir, "run-dir", defaultRunDir, "run directory: socket, locks, attached containers (TCLB_RUN_DIR)")
	flags.StringVar(&a.stateDir, "state-dir", defaultStateDir, "state directory; RUN-DIR/state if only a run directory is given (TCLB_STATE_DIR)")
	flags.StringVar(&a.config, "config", config.DefaultPath, "configuration file (TCLB_CONFIG)")
	flags.StringVar(&a.logLevel, "log-level", "info", "least important messages to log: debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "form of log lines: text or json")
}

// resolve gives each place its flag, else its environment variable, else its default, as an
// absolute path.
func (a *app) resolve(flags *pflag.FlagSet) error {
	given := func(flag, variable string, value *string) bool {
		if flags.Changed(flag) {
			return true
		}
		if v := a.getenv(variable); v != "" {
			*value = v
			return true
		}
		return false
	}
	given("bpffs", "TCLB_BPFFS", &a.bpffs)
	a.configExplicit = given("config", "TCLB_CONFIG", &a.config)
	runDirGiven := given("run-dir", "TCLB_RUN_DIR", &a.runDir)
	if !given("state-dir", "TCLB_STATE_DIR", &a.stateDir) && runDirGiven {
		a.stateDir = filepath.Join(a.runDir, "state")
	}
	for flag, path := range map[string]*string{
		"bpffs": &a.bpffs, "run-dir": &a.runDir, "state-dir": &a.stateDir, "config": &a.config,
	} {
		if *path == "" {
			return usagef("--%s is empty: give a path", flag)
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return fmt.Errorf("resolve --%s: %w", flag, err)
		}
		*path = absolute
	}
	_, err := a.logger()
	return err
}

// getenv returns the value of a variable; empty is as good as unset.
func (a *app) getenv(name string) string {
	for i := len(a.environ) - 1; i >= 0; i-- {
		if key, value, _ := strings.Cut(a.environ[i], "="); key == name {
			return value
		}
	}
	return ""
}

func (a *app) socket() string { return filepath.Join(a.runDir, api.SocketName) }

// logger returns the logger that the flags ask for.
func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	switch a.logLevel {
	case "debug":
		level = slog.LevelDebug
	case "info":
		level = slog.LevelInfo
	case "warn":
		level = slog.LevelWarn
	case "error":
		level = slog.LevelError
	default:
		return nil, usagef("--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch a.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(a.stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, options)), nil
	}
	return nil, usagef("--log-format %q: want text or json", a.logFormat)
}

// exists says whether something is at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
