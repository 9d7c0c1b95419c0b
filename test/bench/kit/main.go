// Command kit holds the benchmark's small tools: the rules of a peer, the machine's CPU use, tables and
// plots of results.
//
//	kit rules [-others N] "VIP PROTOCOL PORT BACKEND..." ...  nftables rules of kube-proxy's shape
//	kit cpu -for 2s -ours PREFIX                              CPU use, and how much of it is not ours
//	kit iperf3                                                iperf3's JSON on stdin -> gbits=N
//	kit table [-base direct] FILE.tsv                         medians and ratios
//	kit plot [-base direct] FILE.tsv                          the ratios as SVG
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

func main() {
	commands := map[string]func(args []string, in io.Reader, out io.Writer) error{
		"rules": rules, "cpu": cpu, "iperf3": iperf3, "table": table, "plot": plot,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: kit rules|cpu|iperf3|table|plot ...")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "kit %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// iperf3 reads the one number of iperf3's report that is wanted.
func iperf3(_ []string, in io.Reader, out io.Writer) error {
	var report struct {
		Error string
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.NewDecoder(in).Decode(&report); err != nil {
		return fmt.Errorf("read report: %w", err)
	}
	if report.Error != "" {
		return fmt.Errorf("iperf3 says: %s", report.Error)
	}
	_, err := fmt.Fprintf(out, "gbits=%.3f\n", report.End.Received.BitsPerSecond/1e9)
	return err
}
