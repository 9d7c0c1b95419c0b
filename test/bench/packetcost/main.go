// Command packetcost measures what a packet costs in the program that runs at a container's veth, in
// nanoseconds, by the kernel's test runs: no network, no other program, one CPU.
//
// The program is the one that is attached in production, loaded the same way with the default sizes.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror -isystem ../../../bpf/include" -no-global-types NextPacket next_packet.c

func main() {
	rounds := flag.Int("rounds", 9, "measurements of each line; the median is printed")
	churn := flag.Int("churn", 1_000_000, "new flows before the churned figures")
	cpu := flag.Int("cpu", 1, "CPU to measure on")
	flag.Parse()
	if err := run(*rounds, *churn, *cpu); err != nil {
		fmt.Fprintln(os.Stderr, "packetcost:", err)
		os.Exit(1)
	}
}

func run(rounds, churn, cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	n, err := newNode()
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.printPrograms(os.Stdout); err != nil {
		return err
	}
	return n.measure(os.Stdout, rounds, churn)
}
