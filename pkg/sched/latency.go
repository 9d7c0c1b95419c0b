package sched

import "math"

// LatencyTicks is how many ticks of a Latency a second has. Ticks wrap after 49 days and are compared by
// signed difference.
const LatencyTicks = 1000

// latencyStep: a measurement that is smaller than the last one and this much younger, in parts of a
// second, says too little to be kept.
const latencyStep = 32

// Latency is a time that is measured again and again: a longer one counts at once, shorter ones by and by,
// as half of what was above them goes each second. It is the datapath's latency.h.
type Latency struct {
	NS   uint32 // 0: never measured
	Tick uint32 // of the measurement
}

// Learn returns l with a measurement at a tick taken in.
func (l Latency) Learn(ns uint64, now uint32) Latency {
	ns = min(max(ns, 1), math.MaxUint32)
	age := now - l.Tick
	if ns < uint64(l.NS) {
		if age < LatencyTicks/latencyStep {
			return l
		}
		ns += fade(uint64(l.NS)-ns, age)
	}
	return Latency{NS: uint32(ns), Tick: now}
}

// At returns what is left of l at a tick.
func (l Latency) At(now uint32) uint64 { return fade(uint64(l.NS), now-l.Tick) }

// fade returns what is left of ns after some ticks: half of it each second.
func fade(ns uint64, ticks uint32) uint64 {
	halves := ticks / LatencyTicks
	if halves > 31 {
		return 0
	}
	ns >>= halves
	return ns - ns*uint64(ticks%LatencyTicks)/(2*LatencyTicks)
}
