package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpu watches the machine for a while: what a sample is worth depends on who else was working.
func cpu(args []string, _ io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("cpu", flag.ContinueOnError)
	span := flags.Duration("for", 2*time.Second, "how long")
	prefix := flags.String("ours", "tb-", "processes in network namespaces of these names are the benchmark's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ours, err := namespaces(*prefix)
	if err != nil {
		return err
	}
	busy0, total0, err := machineTicks()
	if err != nil {
		return err
	}
	foreign0 := foreignTicks(ours)
	time.Sleep(*span)
	busy1, total1, err := machineTicks()
	if err != nil {
		return err
	}
	foreign1 := foreignTicks(ours)
	total := float64(total1 - total0)
	if total == 0 {
		return errors.New("no time passed")
	}
	// Processes that ended took their ticks with them.
	foreign := max(0, float64(foreign1)-float64(foreign0))
	_, err = fmt.Fprintf(out, "busy=%.1f foreign=%.1f\n", float64(busy1-busy0)/total*100, foreign/total*100)
	return err
}

// namespaces returns the named network namespaces that are ours, as links below /proc name them.
func namespaces(prefix string) (map[string]bool, error) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, entry := range entries {
		var st syscall.Stat_t
		if strings.HasPrefix(entry.Name(), prefix) && syscall.Stat("/run/netns/"+entry.Name(), &st) == nil {
			ours[fmt.Sprintf("net:[%d]", st.Ino)] = true
		}
	}
	return ours, nil
}

// machineTicks reads the first line of /proc/stat.
func machineTicks() (busy, total uint64, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i >= 8 { // guests are counted in user time already
			break
		}
		total += n
		if i != 3 && i != 4 { // idle, iowait
			busy += n
		}
	}
	return busy, total, nil
}

// foreignTicks sums the CPU time of processes that are neither ours nor the kernel's.
func foreignTicks(ours map[string]bool) uint64 {
	entries, _ := os.ReadDir("/proc")
	var sum uint64
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		space, err := os.Readlink("/proc/" + entry.Name() + "/ns/net")
		if err != nil || ours[space] {
			continue
		}
		text, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue
		}
		// After the command's name in brackets, which may hold anything: state, parent, ...
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) < 13 || fields[1] == "0" || fields[1] == "2" {
			continue
		}
		user, _ := strconv.ParseUint(fields[11], 10, 64)
		system, _ := strconv.ParseUint(fields[12], 10, 64)
		sum += user + system
	}
	return sum
}
