package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// netConf is our entry of a conflist, as runtimes send it on standard input. Keys are matched
// without regard to case, for some runtimes capitalise them; unknown keys are theirs.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`

	Services   []string `json:"services"`
	JoinByName *bool    `json:"joinByName"` // default true
	BPFFS      string   `json:"bpffs"`
	RunDir     string   `json:"runDir"`

	RuntimeConfig struct {
		Aliases     aliases           `json:"aliases"`
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	PrevResult json.RawMessage `json:"prevResult"`

	// What GC keeps. libcni sends the older key too.
	ValidAttachments json.RawMessage `json:"cni.dev/valid-attachments"`
	Attachments      json.RawMessage `json:"cni.dev/attachments"`
}

// parseConf decodes and checks the configuration of every verb but DEL.
func parseConf(stdin []byte) (*netConf, error) {
	c := &netConf{}
	if err := json.Unmarshal(stdin, c); err != nil {
		var mistyped *json.UnmarshalTypeError
		if errors.As(err, &mistyped) {
			return nil, failure(types.ErrInvalidNetworkConfig, nil,
				"conflist key %q cannot be a JSON %s", mistyped.Field, mistyped.Value)
		}
		return nil, failure(types.ErrDecodingFailure, err, "the network configuration is no JSON")
	}
	c.BPFFS = orDefault(c.BPFFS, datapath.DefaultBPFFS)
	c.RunDir = orDefault(c.RunDir, registry.DefaultRunDir)
	for key, path := range map[string]string{"bpffs": c.BPFFS, "runDir": c.RunDir} {
		if !filepath.IsAbs(path) {
			return nil, failure(types.ErrInvalidNetworkConfig, nil, "conflist key %q: %q is no absolute path", key, path)
		}
	}
	return c, nil
}

// parsePlaces reads what DEL needs, and takes the defaults for what it cannot read: DEL has to
// clean up under a conflist that was broken after ADD, too.
func parsePlaces(stdin []byte) (c *netConf, warnings []error) {
	var raw struct {
		BPFFS  json.RawMessage `json:"bpffs"`
		RunDir json.RawMessage `json:"runDir"`
	}
	if err := json.Unmarshal(stdin, &raw); err != nil {
		warnings = append(warnings, fmt.Errorf("decode network configuration: %w", err))
	}
	path := func(key string, value json.RawMessage, fallback string) string {
		var s string
		if value == nil {
			return fallback
		}
		if err := json.Unmarshal(value, &s); err != nil || s != "" && !filepath.IsAbs(s) {
			warnings = append(warnings, fmt.Errorf("conflist key %q is no absolute path: using %s", key, fallback))
			return fallback
		}
		return orDefault(s, fallback)
	}
	return &netConf{
		BPFFS:  path("bpffs", raw.BPFFS, datapath.DefaultBPFFS),
		RunDir: path("runDir", raw.RunDir, registry.DefaultRunDir),
	}, warnings
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// validAttachments returns what GC keeps. null, which CRI-O sends on an empty node, keeps
// nothing; without the key nothing may be concluded.
func (c *netConf) validAttachments() (map[types.GCAttachment]bool, error) {
	raw := c.ValidAttachments
	if raw == nil {
		raw = c.Attachments
	}
	if raw == nil {
		return nil, failure(types.ErrInvalidNetworkConfig, nil,
			"GC without \"cni.dev/valid-attachments\": the runtime does not say what to keep")
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, failure(types.ErrInvalidNetworkConfig, err, "\"cni.dev/valid-attachments\" is no list of attachments")
	}
	valid := make(map[types.GCAttachment]bool, len(list))
	for _, a := range list {
		valid[a] = true
	}
	return valid, nil
}

// aliases are a container's names on a network. podman sends an object of lists by network, the
// CNI conventions a plain list. Other shapes name nothing: aliases are no reason to fail an ADD.
type aliases struct {
	byNetwork map[string][]string
	all       []string
}

// UnmarshalJSON accepts every valid JSON.
func (a *aliases) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		_ = json.Unmarshal(data, &a.byNetwork)
	} else {
		_ = json.Unmarshal(data, &a.all)
	}
	return nil
}

func (a aliases) of(network string) []string {
	return append(append([]string(nil), a.all...), a.byNetwork[network]...)
}

// cniArgs parses CNI_ARGS: K=V pairs in any order, separated by semicolons. Runtimes put keys of
// their own there. The last of two equal keys counts.
func cniArgs(s string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			out[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return out
}
