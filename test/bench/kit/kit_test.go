package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const rows = "direct\trate\t100\t50\t1\t1\n" +
	"direct\trate\t300\t50\t1\t2\n" +
	"direct\trate\t200\t50\t2\t3\n" +
	"direct\trate\t9000\t99\t40\t4\n" + // somebody else was at work
	"tclb\trate\t220\t50\t1\t1\n" +
	"tclb\trate\t\t50\t1\t2\n" // not measured

func resultsFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "results.tsv")
	if err := os.WriteFile(path, []byte(rows), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTableIsOfMediansAndRatios(t *testing.T) {
	var out bytes.Buffer
	if err := table([]string{resultsFile(t)}, nil, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"5 samples, 1 not counted because other work ran beside them, 1 failed.",
		"| direct | 200 | 100 .. 300 | 3 | 1.00 |",
		"| tclb | 220 | 220 .. 220 | 1 | 1.10 |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestPlotHasABarForEveryWorld(t *testing.T) {
	var out bytes.Buffer
	if err := plot([]string{resultsFile(t)}, nil, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"direct 1.00", "tclb 1.10", "</svg>"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestResultsThatAreNotThereAreAnError(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.tsv")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, filepath.Join(t.TempDir(), "missing.tsv")} {
		if err := table([]string{path}, nil, &bytes.Buffer{}); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestRulesTranslateToEveryBackend(t *testing.T) {
	var out bytes.Buffer
	if err := rules([]string{"-others", "2", "192.0.2.10 tcp 80 198.51.100.1:8080 198.51.100.2:8080"}, nil, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"add element ip tb service-ips { 192.0.2.10 . tcp . 80 : goto svc-2 }",
		"add rule ip tb ep-2-1 meta l4proto tcp dnat to 198.51.100.2:8080",
		"numgen random mod 2 vmap { 0 : goto ep-2-0, 1 : goto ep-2-1 }",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the rules", want)
		}
	}
	if err := rules([]string{"192.0.2.10 tcp"}, nil, &out); err == nil {
		t.Error("a service without backends was taken")
	}
}

func TestIperf3ErrorsAreNoMeasurement(t *testing.T) {
	var out bytes.Buffer
	if err := iperf3(nil, strings.NewReader(`{"end": {"sum_received": {"bits_per_second": 2.5e9}}}`), &out); err != nil || out.String() != "gbits=2.500\n" {
		t.Errorf("%q, %v", &out, err)
	}
	if err := iperf3(nil, strings.NewReader(`{"error": "unable to connect"}`), &out); err == nil {
		t.Error("a failed run counted")
	}
}
