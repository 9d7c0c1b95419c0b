package main

import (
	"errors"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// status fails where an ADD would fail, whatever the container. To know, it does what an ADD
// would do first after a boot: it loads the datapath. A stopped proxy keeps nobody from an ADD.
func (p *plugin) status(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	reg, err := registry.Open(conf.RunDir)
	mode := ""
	if err == nil {
		mode, err = reg.Mode()
	}
	if err != nil {
		return failure(types.ErrPluginNotAvailable, err, "the run directory cannot be used")
	}
	if mode == registry.ModeUserspace {
		return nil // an ADD writes a file and nothing else
	}
	dp, err := p.load(datapath.Options{BPFFS: conf.BPFFS, Sizes: p.sizes(conf.RunDir), Log: p.log})
	if err != nil {
		var e *types.Error
		_ = errors.As(datapathFailure(err), &e)
		return types.NewError(types.ErrPluginNotAvailable, e.Msg, e.Details)
	}
	_ = dp.Close()
	return nil
}
