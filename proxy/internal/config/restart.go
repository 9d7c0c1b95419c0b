package config

import "reflect"

// restartKeys are the keys whose change takes effect at the next start of the proxy: sizes of maps,
// names under which others know the node, and what is opened once.
var restartKeys = []struct {
	key   string
	field func(*Config) any // a pointer
}{
	{"node.name", func(c *Config) any { return &c.Node.Name }},
	{"servicesDir", func(c *Config) any { return &c.ServicesDir }},
	{"datapath.mode", func(c *Config) any { return &c.Datapath.Mode }},
	{"datapath.maxServices", func(c *Config) any { return &c.Datapath.MaxServices }},
	{"datapath.maxBackends", func(c *Config) any { return &c.Datapath.MaxBackends }},
	{"datapath.tableSlots", func(c *Config) any { return &c.Datapath.TableSlots }},
	{"listen", func(c *Config) any { return &c.Listen }},
	{"etcd", func(c *Config) any { return &c.Etcd }},
	{"conntrack.maxEntries", func(c *Config) any { return &c.Conntrack.MaxEntries }},
	{"runtimes", func(c *Config) any { return &c.Runtimes }},
}

// RestartKeys returns the keys that differ from old and need a restart, in the order of the file. All
// other keys can change while the proxy runs.
func (c *Config) RestartKeys(old *Config) []string {
	var keys []string
	for _, k := range restartKeys {
		if !reflect.DeepEqual(k.field(c), k.field(old)) {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// KeepRestartKeys gives all keys that need a restart the values of old, with which the proxy runs: the other
// keys are read together with them.
func (c *Config) KeepRestartKeys(old *Config) {
	for _, k := range restartKeys {
		reflect.ValueOf(k.field(c)).Elem().Set(reflect.ValueOf(k.field(old)).Elem())
	}
}
