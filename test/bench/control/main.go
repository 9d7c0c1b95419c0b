// Command control measures the proxy's part: how long it takes to load many services, what memory it
// needs for them, and how soon a changed backend is in the maps.
//
// It starts the given binary in the network namespace that it runs in itself.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	proxy := flag.String("proxy", "bin/tclb", "the binary to measure")
	services := flag.Int("services", 10_000, "services of ten backends each")
	changes := flag.Int("changes", 40, "changes of one backend")
	flag.Parse()
	if err := run(os.Stdout, *proxy, *services, *changes); err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}
