package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxFileSize is the largest configuration file that is read, in bytes.
const MaxFileSize = 8 << 20

// parseDocument reads the one YAML document of a file. It returns nil without a finding for a
// file that says nothing, and nil with findings for one that is no single YAML document.
func parseDocument(rep *report, data []byte) *yaml.Node {
	if len(data) > MaxFileSize {
		rep.add(start, keyFile, fmt.Sprintf("file is larger than %d MiB: split it", MaxFileSize>>20))
		return nil
	}
	if at, reason := badText(data); reason != "" {
		rep.add(at, keyFile, reason)
		return nil
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	root, err := next(dec)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		addSyntaxError(rep, dec, data, err)
		return nil
	}
	switch second, err := next(dec); {
	case err == nil:
		rep.add(position{second.Line, second.Column}, keyYAML,
			"a second document starts here: a file holds one, put this one into a file of its own")
		return nil
	case !errors.Is(err, io.EOF):
		addSyntaxError(rep, dec, data, err)
		return nil
	}
	if !checkAliases(rep, root) {
		return nil
	}
	if content := root.Content[0]; !isNull(content) {
		return content
	}
	return nil
}

// next returns the next document of the stream, or io.EOF. The YAML library panics on some
// malformed input; a file must never be able to stop the proxy.
func next(dec *yaml.Decoder) (doc *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not readable as YAML: %v", p)
		}
	}()
	doc = new(yaml.Node)
	if err := dec.Decode(doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0] == nil {
		return nil, errors.New("not readable as YAML")
	}
	return doc, nil
}

// errorPrefix is what the YAML library puts before its reasons.
var errorPrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// addSyntaxError turns an error of the YAML library into a finding.
func addSyntaxError(rep *report, dec *yaml.Decoder, data []byte, err error) {
	text := err.Error()
	prefix := errorPrefix.FindStringSubmatch(text)
	at, ok := syntaxPosition(dec)
	if !ok && prefix != nil && prefix[1] != "" {
		line, _ := strconv.Atoi(prefix[1])
		at = position{line, 1}
	}
	reason := printable(errorPrefix.ReplaceAllString(text, ""))
	noValue := strings.Contains(reason, "expected node content") || strings.Contains(reason, "cannot start any token")
	switch first := byteAt(data, at); {
	case first == '\t':
		reason = "a tab: YAML wants spaces here"
	case noValue && strings.IndexByte(":%@`", first) >= 0:
		reason += ": put the value in quotes" // ::1, %, @ and ` begin no plain text
	}
	rep.add(at, keyYAML, reason)
}

// syntaxPosition reads where the decoder stopped.
//
// The library knows the line and the column of a syntax error, but its message has no column, and
// often the line where the surrounding map began. Its parser's marks can be read, never written,
// by reflection. Should a later version name them differently, ok is false, the message's line is used
// instead, and TestSyntaxErrorsHaveAPosition says so.
func syntaxPosition(dec *yaml.Decoder) (at position, ok bool) {
	parser := field(reflect.ValueOf(dec), "parser")
	scanner := field(parser, "parser")
	if at, ok = mark(field(scanner, "problem_mark")); ok && at != start {
		return at, true
	}
	// Errors of composition (an unknown anchor) set no problem mark: the event says where.
	if at, ok := mark(field(field(parser, "event"), "start_mark")); ok && at != start {
		return at, true
	}
	return start, ok
}

// field returns a field of the struct v or of what v points to, or the invalid value.
func field(v reflect.Value, name string) reflect.Value {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.FieldByName(name)
}

// mark reads the library's position type, which counts from 0.
func mark(v reflect.Value) (position, bool) {
	line, column := field(v, "line"), field(v, "column")
	if line.Kind() != reflect.Int || column.Kind() != reflect.Int {
		return start, false
	}
	return position{int(line.Int()) + 1, int(column.Int()) + 1}, true
}

// byteAt returns the first byte of the character at a position, 0 beyond the end.
func byteAt(data []byte, at position) byte {
	for line := 1; line < at.line; line++ {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			return 0
		}
		data = data[i+1:]
	}
	for column := 1; column < at.column && len(data) > 0; column++ {
		_, size := utf8.DecodeRune(data)
		data = data[size:]
	}
	if len(data) == 0 {
		return 0
	}
	return data[0]
}

// badText finds the first byte that is no UTF-8, or a character that YAML does not allow.
func badText(data []byte) (at position, reason string) {
	at = start
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return at, fmt.Sprintf("byte 0x%02x is not UTF-8: save the file as UTF-8", data[i])
		case r == '\n':
			at = position{at.line + 1, 0}
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f, r == 0xfeff && i > 0:
			return at, fmt.Sprintf("control character U+%04X: remove it", r)
		}
		if r != 0xfeff { // a byte order mark at the start takes no column
			at.column++
		}
		i += size
	}
	return at, ""
}
