package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"strconv"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

// prevResult is what the plugins before us made: the raw form is handed on, so that keys which
// this binary does not know reach the next plugin.
type prevResult struct {
	raw    json.RawMessage
	parsed *current.Result
}

// prevResult decodes the result that a chained plugin must be given.
func (c *netConf) prevResult() (prevResult, error) {
	raw := bytes.TrimSpace(c.PrevResult)
	if len(raw) == 0 || string(raw) == "null" {
		return prevResult{}, failure(types.ErrInvalidNetworkConfig, nil,
			"tclb-cni got no prevResult: it makes no interface itself; put it into \"plugins\" after the one that does (bridge, ptp)")
	}
	var has struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(raw, &has); err != nil {
		return prevResult{}, failure(types.ErrDecodingFailure, err, "prevResult is no CNI result")
	}
	r, err := decodeResult(raw, has.CNIVersion, c.CNIVersion)
	if err != nil {
		return prevResult{}, failure(types.ErrDecodingFailure, err, "prevResult is no CNI result of version %s", c.CNIVersion)
	}
	return r, nil
}

// decodeResult decodes raw, of version has, for a configuration of version want. Only a raw of
// that same version stays as it is.
func decodeResult(raw json.RawMessage, has, want string) (prevResult, error) {
	if has == "" { // as results before 1.0.0 may be
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(raw, &keys); err != nil {
			return prevResult{}, err
		}
		keys["cniVersion"] = json.RawMessage(strconv.Quote(want))
		named, err := json.Marshal(keys)
		if err != nil {
			return prevResult{}, err
		}
		raw, has = named, want
	}
	res, err := cniversion.NewResult(has, raw)
	if err != nil {
		return prevResult{}, err
	}
	if has != want {
		if res, err = res.GetAsVersion(want); err != nil {
			return prevResult{}, err
		}
		if raw, err = json.Marshal(res); err != nil {
			return prevResult{}, err
		}
	}
	parsed, err := current.NewResultFromResult(res)
	return prevResult{raw: raw, parsed: parsed}, err
}

// print hands the result on.
func (r prevResult) print(w io.Writer) error {
	if _, err := w.Write(append(bytes.Clone(r.raw), '\n')); err != nil {
		return failure(types.ErrIOFailure, err, "the result cannot be written")
	}
	return nil
}

// addresses returns the addresses that the result gives to the container's interface ifname.
func (r prevResult) addresses(ifname string) []netip.Addr {
	var out []netip.Addr
	for _, ip := range r.parsed.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.parsed.Interfaces) {
			if f := r.parsed.Interfaces[*i]; f.Sandbox == "" || f.Name != ifname {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && usable(a) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// sandbox returns where the result says that ifname is.
func (r prevResult) sandbox(ifname string) string {
	for _, f := range r.parsed.Interfaces {
		if f.Name == ifname && f.Sandbox != "" {
			return f.Sandbox
		}
	}
	return ""
}

// usable reports whether a packet with the address a can be balanced.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}
