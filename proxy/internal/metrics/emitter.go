package metrics

import (
	"bufio"
	"strconv"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// emitter writes families in Prometheus' text format, sample by sample.
//
// The client library would hold a message for every sample: over 100 MB for one scrape of 5,000
// services with 5 backends each, as much as all the rest of the proxy. This holds one line.
type emitter struct {
	out    *bufio.Writer // keeps the first error
	family *family
	line   []byte
}

// emit writes a family: its head, then its samples.
func (e *emitter) emit(f *family, s *scrape) {
	e.family = f
	e.line = append(e.line[:0], "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" "+f.kind+"\n"...)
	_, _ = e.out.Write(e.line)
	f.write(s, e)
}

// sample writes one value of a gauge or counter; label values come in the family's order.
func (e *emitter) sample(value uint64, labels ...string) {
	e.head(labels)
	e.line = append(strconv.AppendUint(e.line, value, 10), '\n')
	_, _ = e.out.Write(e.line)
}

// seconds writes one value of a gauge of time.
func (e *emitter) seconds(value time.Duration, labels ...string) {
	e.head(labels)
	e.line = append(strconv.AppendFloat(e.line, value.Seconds(), 'g', -1, 64), '\n')
	_, _ = e.out.Write(e.line)
}

// head begins a line with the name and labels of a sample.
func (e *emitter) head(labels []string) {
	e.line = append(e.line[:0], e.family.name...)
	for i, label := range labels {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		e.line = append(append(append(e.line, separator), e.family.labels[i]...), `="`...)
		e.line = append(appendEscaped(e.line, label), '"')
	}
	if len(labels) > 0 {
		e.line = append(e.line, '}')
	}
	e.line = append(e.line, ' ')
}

// timing writes a summary without quantiles.
func (e *emitter) timing(t view.Timing) {
	e.line = append(append(e.line[:0], e.family.name...), "_sum "...)
	e.line = append(strconv.AppendFloat(e.line, t.Total.Seconds(), 'g', -1, 64), '\n')
	e.line = append(append(e.line, e.family.name...), "_count "...)
	e.line = append(strconv.AppendUint(e.line, t.Count, 10), '\n')
	_, _ = e.out.Write(e.line)
}

// escaper makes a label value fit between quotes. Names of files can be anything.
var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

func appendEscaped(line []byte, value string) []byte {
	return append(line, escaper.Replace(strings.ToValidUTF8(value, "\uFFFD"))...)
}
