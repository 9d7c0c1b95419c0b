package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatTable, formatJSON, formatYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("want table, json or yaml")
}

// String and Type implement pflag.Value.
func (f *format) String() string { return string(*f) }

// Type is what help calls the value.
func (f *format) Type() string { return "table|json|yaml" }

// addOutput gives a command the flag -o.
func addOutput(cmd *cobra.Command) *format {
	f := formatTable
	cmd.Flags().VarP(&f, "output", "o", "form of the output")
	return &f
}

// column is one column of a table.
type column[T any] struct {
	head string
	cell func(T) string
}

// printRows writes a listing: a table, or one array.
func printRows[T any](w io.Writer, f format, rows []T, columns []column[T]) error {
	if f != formatTable {
		return printValue(w, f, rows)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	cells := make([]string, len(columns))
	for i, c := range columns {
		cells[i] = c.head
	}
	// A tabwriter keeps the first error for Flush.
	_, _ = fmt.Fprintln(table, strings.Join(cells, "\t"))
	for _, row := range rows {
		for i, c := range columns {
			cells[i] = cell(c.cell(row))
		}
		_, _ = fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// cell keeps a value from breaking the table, or the terminal: names come from other programs.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// printable replaces what a terminal might obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// printValue writes v as JSON or YAML, with the same keys in the same order.
func printValue(w io.Writer, f format, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	if f == formatYAML {
		if text, err = toYAML(text); err != nil {
			return err
		}
	}
	if _, err := w.Write(append(bytes.TrimRight(text, "\n"), '\n')); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// toYAML turns JSON, which is YAML, into YAML as people write it.
func toYAML(text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	clearStyle(&document)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return nil, fmt.Errorf("encode output: %w", err)
	}
	return out.Bytes(), nil
}

// clearStyle forgets JSON's brackets and quotes. The encoder quotes what needs it.
func clearStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		clearStyle(child)
	}
}

// say writes a line for people to stdout.
func (a *app) say(format string, args ...any) error {
	if _, err := fmt.Fprintln(a.stdout, printable(fmt.Sprintf(format, args...))); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// counted returns "1 pair" or "2 pairs".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
