package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// diff compares two values, unexported fields included: lines with - are missing, with + too much.
func diff(want, got any) string {
	return cmp.Diff(want, got,
		cmp.Exporter(func(t reflect.Type) bool { return true }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
}

// lines returns findings as the user sees them.
func lines(findings []Finding) string {
	var b strings.Builder
	for _, f := range findings {
		b.WriteString(f.String() + "\n")
	}
	return b.String()
}

// expect compares findings with lines of text.
func expect(t *testing.T, got []Finding, want ...string) {
	t.Helper()
	if d := cmp.Diff(strings.Join(want, "\n"), strings.TrimSuffix(lines(got), "\n")); d != "" {
		t.Errorf("findings (-want +got):\n%s", d)
	}
}

// addrs parses addresses.
func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// prefixes parses prefixes.
func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// sameFields returns the exported fields of two structs that have equal values, by path.
func sameFields(a, b any) []string {
	var same []string
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		f := va.Type().Field(i)
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[netip.Addr]():
			for _, inner := range sameFields(va.Field(i).Interface(), vb.Field(i).Interface()) {
				same = append(same, f.Name+"."+inner)
			}
		case reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()):
			same = append(same, f.Name)
		}
	}
	return same
}
