package datapath

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Upgrade replaces the pinned programs that differ from this binary's by tag, and returns their
// names. Links still run the old ones until attach.Update is called for each; flows see no gap.
func (d *Datapath) Upgrade() ([]string, error) {
	if d.current {
		return nil, nil
	}
	fresh, err := loadPrograms(d.maps)
	if err != nil {
		return nil, err
	}
	defer closeAll(fresh)
	var changed []string
	for name, p := range fresh {
		want, err := p.Info()
		if err != nil {
			return changed, fmt.Errorf("inspect program %s: %w", name, err)
		}
		have, err := d.progs[name].Info()
		if err != nil {
			return changed, fmt.Errorf("inspect pinned program %s: %w", name, err)
		}
		if want.Tag == have.Tag {
			continue
		}
		if err := d.replacePin(name, p.Pin); err != nil {
			return changed, err
		}
		d.progs[name], fresh[name] = p, d.progs[name]
		changed = append(changed, name)
	}
	slices.Sort(changed)
	return changed, nil
}

// replacePin pins aside and renames over the old pin, so that there is always one.
func (d *Datapath) replacePin(name string, pin func(string) error) error {
	at := filepath.Join(d.dir, "progs", name)
	aside := at + "-new"
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("remove unfinished pin: %w", err)
	}
	if err := pin(aside); err != nil {
		return fmt.Errorf("pin program %s: %w", name, err)
	}
	if err := os.Rename(aside, at); err != nil {
		return fmt.Errorf("replace pin of program %s: %w", name, err)
	}
	return nil
}
