// Package runtimes learns from the container runtimes what they do not hand to CNI plugins: labels
// of containers, and containers that were started before their network was chained to tclb-cni.
//
// Everything here happens after the fact and may fail without harm: a runtime that does not answer
// costs its containers their labels, for as long as it is silent. Nothing is ever asked inside an
// ADD or DEL, while the runtime holds the locks that an answer needs.
package runtimes

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// SourceLabels is the registry.Endpoint.Source of services that labels name.
const SourceLabels = "labels"

// Off is the setting of a runtime that is never asked.
const Off = "off"

// errAbsent says that a runtime is not on this machine, or not running. That is no failure.
var errAbsent = errors.New("the runtime is not here")

// runtime is a container runtime that can be asked for labels.
type runtime interface {
	// name is what people call it.
	name() string
	// mine says whether the container behind an endpoint can be one of this runtime's.
	mine(e registry.Endpoint) bool
	// labels returns the labels of those containers that the runtime knows, by CNI container id.
	// It returns errAbsent if there is nobody to ask.
	labels(ctx context.Context, ids []string) (map[string]map[string]string, error)
	// mutable says that labels of a running container can change.
	mutable() bool
}

// The labels that are ours.
const (
	labelServices = "tclb.services"
	labelWeight   = "tclb.weight"
	labelPort     = "tclb.port"
	labelPrefix   = "tclb."
)

// Labels is what a container's labels say.
type Labels struct {
	Services []string `json:"services,omitempty"`
	Weight   *int     `json:"weight,omitempty"`
	Port     uint16   `json:"port,omitempty"`
}

func (l Labels) empty() bool { return len(l.Services) == 0 && l.Weight == nil && l.Port == 0 }

// dnsLabel is the form of a service's name.
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// parseLabels reads our labels. A label with a mistake does not count and is an error; the others do.
func parseLabels(all map[string]string) (Labels, []error) {
	var (
		l    Labels
		errs []error
	)
	wrong := func(key, want string) {
		errs = append(errs, fmt.Errorf("label %s=%q is ignored: want %s", key, all[key], want))
	}
	for key := range all {
		if strings.HasPrefix(key, labelPrefix) && key != labelServices && key != labelWeight && key != labelPort {
			errs = append(errs, fmt.Errorf("label %s is unknown: want %s, %s or %s", key, labelServices, labelWeight, labelPort))
		}
	}
	for name := range strings.SplitSeq(all[labelServices], ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "" || slices.Contains(l.Services, name):
		case !dnsLabel.MatchString(name):
			wrong(labelServices, "names of services, with commas between them")
		default:
			l.Services = append(l.Services, name)
		}
	}
	if text := strings.TrimSpace(all[labelWeight]); text != "" {
		if n, err := strconv.Atoi(text); err != nil || n < 0 || n > lb.MaxWeight {
			wrong(labelWeight, fmt.Sprintf("a number from 0 to %d", lb.MaxWeight))
		} else {
			l.Weight = &n
		}
	}
	if text := strings.TrimSpace(all[labelPort]); text != "" {
		if n, err := strconv.ParseUint(text, 10, 16); err != nil || n == 0 {
			wrong(labelPort, "a port from 1 to 65535")
		} else {
			l.Port = uint16(n)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return l, errs
}

// apply returns e as it is with its container's labels. They replace what the conflist and names
// gave, not what CNI_ARGS or pod annotations say: those were written for this attachment.
func (l Labels) apply(e registry.Endpoint) registry.Endpoint {
	if e.Source == registry.SourceArgs || e.Source == registry.SourceAnnotations {
		return e
	}
	if len(l.Services) > 0 {
		e.Services, e.Names, e.Source = l.Services, nil, SourceLabels
	}
	if e.Weight == nil { // else it is from CNI_ARGS or annotations too
		e.Weight = l.Weight
	}
	if e.Port == 0 {
		e.Port = l.Port
	}
	return e
}
