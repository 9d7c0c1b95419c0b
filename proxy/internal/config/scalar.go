package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// scalar is one value as written. Nothing is coerced: a number in quotes is text, and 1.0 is no
// whole number, because guessing turns typing errors into settings.
type scalar struct {
	name string // the key's own name, for reasons; "value" in a list
	tag  string // YAML's type: !!str, !!int, !!float, !!bool, ...
	text string
}

// parser turns a scalar into a value, or says what is wrong and what to write instead.
type parser[T any] func(scalar) (T, error)

// value reads the scalar at c.
func value[T any](c cursor, parse parser[T]) (T, bool) {
	var none T
	if !c.present() {
		return none, false
	}
	if c.node.Kind != yaml.ScalarNode {
		c.fail("want one value, got %s", kindOf(c.node))
		return none, false
	}
	name := "value"
	if c.path != nil && c.path.key != "" {
		name = c.path.key
	}
	v, err := parse(scalar{name: name, tag: c.node.Tag, text: c.node.Value})
	if err != nil {
		c.fail("%s", err)
		return none, false
	}
	return v, true
}

// set reads the scalar under a key into a variable that holds the default, and says whether it did.
func set[T any](m *mapping, key string, into *T, parse parser[T]) bool {
	c, ok := m.get(key)
	if !ok {
		return false
	}
	v, ok := value(c, parse)
	if ok {
		*into = v
	}
	return ok
}

// setAt is set for a value that a later check may have to say something about: it returns where that stands.
func setAt[T any](m *mapping, key string, into *T, parse parser[T]) spot {
	set(m, key, into, parse)
	if e := m.find(key); e != nil {
		return m.child(e.value, path{key: key}).spot()
	}
	return spot{}
}

// setList reads the list of different scalars under a key. An empty list replaces the default.
func setList[T comparable](m *mapping, key string, into *[]T, parse parser[T]) {
	c, ok := m.get(key)
	if !ok {
		return
	}
	list := []T{}
	seen := make(firsts[T])
	for _, e := range c.elements() {
		if v, ok := value(e, parse); ok && seen.add(e, v, fmt.Sprint(v)) {
			list = append(list, v)
		}
	}
	*into = list
}

// firsts remembers where things stand that may be there only once.
type firsts[K comparable] map[K]position

// add records a finding if there was such a thing before. what names it in the reason.
func (f firsts[K]) add(c cursor, k K, what string) bool {
	if first, twice := f[k]; twice {
		c.fail("%s is given twice: first on line %d", what, first.line)
		return false
	}
	f[k] = c.at
	return true
}

// text accepts any text.
func text(s scalar) (string, error) {
	if s.tag != "!!str" {
		return "", fmt.Errorf("%s %s is not text: put it in quotes", s.name, show(s.text))
	}
	return s.text, nil
}

// boolean accepts true and false.
func boolean(s scalar) (bool, error) {
	if s.tag != "!!bool" {
		return false, fmt.Errorf("%s %s is neither true nor false: write true or false, without quotes", s.name, show(s.text))
	}
	return strings.EqualFold(s.text, "true"), nil
}

// decimal is how whole numbers are written. YAML has octal, hexadecimal and underscores besides;
// a port 0100 that means 64 helps nobody.
var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// integer accepts whole numbers from lowest to highest.
func integer[T int | uint16 | uint32](lowest, highest T) parser[T] {
	return func(s scalar) (T, error) {
		switch {
		case s.tag == "!!str" && decimal.MatchString(s.text):
			return 0, fmt.Errorf("%s %s is text: remove the quotes", s.name, show(s.text))
		case s.tag == "!!float" && strings.ContainsAny(s.text, ".eE"):
			return 0, fmt.Errorf("%s %s is not a whole number: want %d to %d", s.name, printable(s.text), lowest, highest)
		case s.tag != "!!int" && s.tag != "!!float" || !decimal.MatchString(s.text):
			return 0, fmt.Errorf("%s %s is not a decimal number: want %d to %d", s.name, show(s.text), lowest, highest)
		}
		n, err := strconv.ParseInt(s.text, 10, 64)
		if err != nil || n < int64(lowest) || n > int64(highest) {
			return 0, fmt.Errorf("%s %s is out of range: want %d to %d", s.name, printable(s.text), lowest, highest)
		}
		return T(n), nil
	}
}

// fraction accepts numbers above lowest, up to highest.
func fraction(lowest, highest float64) parser[float64] {
	return func(s scalar) (float64, error) {
		if s.tag != "!!int" && s.tag != "!!float" {
			return 0, fmt.Errorf("%s %s is not a number: want more than %g, at most %g", s.name, show(s.text), lowest, highest)
		}
		f, err := strconv.ParseFloat(s.text, 64)
		if err != nil || math.IsNaN(f) || f <= lowest || f > highest {
			return 0, fmt.Errorf("%s %s is out of range: want more than %g, at most %g", s.name, printable(s.text), lowest, highest)
		}
		return f, nil
	}
}

// duration accepts durations from lowest to highest.
func duration(lowest, highest time.Duration) parser[time.Duration] {
	return func(s scalar) (time.Duration, error) {
		if s.tag == "!!int" || s.tag == "!!float" || decimal.MatchString(s.text) {
			return 0, fmt.Errorf("%s %s has no unit: write %ss for seconds, or 500ms, 2h15m", s.name, show(s.text), printable(s.text))
		}
		d, err := time.ParseDuration(s.text)
		if s.tag != "!!str" || err != nil {
			return 0, fmt.Errorf("%s %s is not a duration: write 500ms, 30s, 3h or 2h15m", s.name, show(s.text))
		}
		if d < lowest || d > highest {
			return 0, fmt.Errorf("%s %s is out of range: want %s to %s", s.name, s.text, plain(lowest), plain(highest))
		}
		return d, nil
	}
}

// plain writes a duration as a user would: 3h, not 3h0m0s.
func plain(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// option is a word of a choice and what it stands for.
type option[T any] struct {
	word  string
	value T
}

// words returns options whose words stand for themselves.
func words(list ...string) []option[string] {
	out := make([]option[string], len(list))
	for i, w := range list {
		out[i] = option[string]{w, w}
	}
	return out
}

// choice accepts one of a few words.
func choice[T any](options []option[T]) parser[T] {
	return func(s scalar) (T, error) {
		var all []string
		for _, o := range options {
			if s.tag == "!!str" && o.word == s.text {
				return o.value, nil
			}
			all = append(all, o.word)
		}
		var none T
		advice := "want " + oneOf(all)
		if near := nearest(s.text, all); near != "" {
			advice = fmt.Sprintf("did you mean %q?", near)
		}
		return none, fmt.Errorf("unknown %s %s: %s", s.name, show(s.text), advice)
	}
}

// matching accepts text that a rule accepts. The rule returns what is wrong with it.
func matching(rule func(string) error) parser[string] {
	return func(s scalar) (string, error) {
		t, err := text(s)
		if err == nil {
			if err = rule(t); err != nil {
				err = fmt.Errorf("%s %s %w", s.name, show(t), err)
			}
		}
		return t, err
	}
}

// orEmpty accepts the empty text besides what parse accepts.
func orEmpty(parse parser[string]) parser[string] {
	return func(s scalar) (string, error) {
		if s.tag == "!!str" && s.text == "" {
			return "", nil
		}
		return parse(s)
	}
}

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$`)
)

// label accepts a DNS label, so that names can become host names.
var label = matching(func(s string) error {
	if len(s) > 63 || !dnsLabel.MatchString(s) {
		return errors.New("is no DNS label: use a-z, 0-9 and - inside, at most 63 characters")
	}
	return nil
})

// nodeName accepts a host name. It has no slash: commands name backends node/address.
var nodeName = matching(CheckNodeName)

// absolute accepts an absolute path: the proxy's working directory means nothing to the user.
var absolute = matching(func(s string) error {
	if !strings.HasPrefix(s, "/") || strings.ContainsRune(s, 0) {
		return errors.New("is no absolute path: begin with /")
	}
	return nil
})

// device accepts the name of a network device, by the kernel's rule.
var device = matching(func(s string) error {
	if len(s) == 0 || len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t\n") {
		return errors.New("is no device name: 1 to 15 characters without / : and spaces")
	}
	return nil
})

// nonEmpty accepts any text but the empty one.
var nonEmpty = matching(func(s string) error {
	if s == "" {
		return errors.New("is empty: give one or remove the key")
	}
	return nil
})
