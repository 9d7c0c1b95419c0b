package metrics

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api/apitest"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func newHandler(t testing.TB, v *apitest.View, m *apitest.Maps, log io.Writer) http.Handler {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(log, nil))
	return New(v, m, "v1.2.3", logger)
}

// scrapeText returns all lines about our families.
func scrapeText(t testing.TB, h http.Handler) string {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	var out strings.Builder
	for line := range strings.Lines(rec.Body.String()) {
		if strings.Contains(line, "tclb_") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// value returns the value of one sample, or fails.
func value(t *testing.T, text, sample string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + ` (.*)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no sample %s in:\n%s", sample, text)
	}
	return m[1]
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update makes it)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, diff)
	}
}

// withoutHost blanks what depends on where the test runs or what the datapath's reasons are.
func withoutHost(text string) string {
	text = regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(text, `goversion="go"`)
	return regexp.MustCompile(`(?m)^tclb_drops_total\{.*\n`).ReplaceAllString(text, "")
}

func TestScrape(t *testing.T) {
	golden(t, "testdata/scrape.txt", withoutHost(scrapeText(t, newHandler(t, apitest.NewView(), apitest.NewMaps(), io.Discard))))
}

func TestEveryFamilyIsThereOnAnEmptyNode(t *testing.T) {
	v, m := &apitest.View{ConfigValue: config.Default()}, apitest.NewMaps()
	m.PairValues, m.RoomValues = nil, map[datapath.Room]datapath.RoomStat{}
	got := scrapeText(t, newHandler(t, v, m, io.Discard))
	golden(t, "testdata/empty.txt", withoutHost(got))
	for _, f := range families {
		if !strings.Contains(got, "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" ") {
			t.Errorf("no help and type of %s", f.name)
		}
	}
	for _, reason := range datapath.DropReasons() {
		if v := value(t, got, fmt.Sprintf("tclb_drops_total{reason=%q}", reason)); v != "0" {
			t.Errorf("drops by %s: %s, want 0", reason, v)
		}
	}
}

func TestScrapeIsTextThatParsesAndLints(t *testing.T) {
	rec := httptest.NewRecorder()
	newHandler(t, apitest.NewView(), apitest.NewMaps(), io.Discard).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if got := rec.Header().Get("Content-Type"); !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", got)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(rec.Body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tclb_build_info", "go_goroutines", "process_open_fds"} {
		if parsed[name] == nil {
			t.Errorf("no family %s", name)
		}
	}
	problems, err := promlint.New(rec.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "tclb_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

const webOne = `{service="web",backend="192.0.2.105:8080"}`

func TestTrafficNeverFallsWhenFlowsEnd(t *testing.T) {
	m := apitest.NewMaps()
	m.PairValues = append(m.PairValues, datapath.Pair{
		Protocol: lb.TCP, BackendID: 10, BackendGen: 1, Service: 1,
		Packets: [2]uint64{6, 4}, Bytes: [2]uint64{600, 400},
	})
	h := newHandler(t, apitest.NewView(), m, io.Discard)
	if got := value(t, scrapeText(t, h), "tclb_packets_total"+webOne); got != "410" {
		t.Fatalf("%s packets, want 400 of ended flows and 10 of a running one", got)
	}
	// The flow has ended, and its figures are not in the backend's counters yet.
	m.PairValues = nil
	if got := value(t, scrapeText(t, h), "tclb_bytes_total"+webOne); got != "41000" {
		t.Errorf("bytes fell to %s", got)
	}
	m.SetStat(10, datapath.BackendStat{Total: 42, Packets: 411, Bytes: 41100})
	if got := value(t, scrapeText(t, h), "tclb_packets_total"+webOne); got != "411" {
		t.Errorf("%s packets, want 411", got)
	}
}

func TestAnotherBackendBeginsAnew(t *testing.T) {
	m := apitest.NewMaps()
	stale := datapath.Pair{BackendID: 10, BackendGen: 1, Packets: [2]uint64{1000, 1000}}
	m.PairValues = []datapath.Pair{stale}
	h := newHandler(t, apitest.NewView(), m, io.Discard)
	scrapeText(t, h)
	// The id goes to another backend, while a flow of the old one is still in the table.
	m.Generations[10] = 2
	m.SetStat(10, datapath.BackendStat{Total: 41, Packets: 3, Bytes: 300})
	if got := value(t, scrapeText(t, h), "tclb_packets_total"+webOne); got != "3" {
		t.Errorf("%s packets, want 3", got)
	}
}

func TestLabelValuesAreEscaped(t *testing.T) {
	v := apitest.NewView()
	v.FileValues = []string{"/a\"b\\c\nd\xff.yaml"}
	got := scrapeText(t, newHandler(t, v, apitest.NewMaps(), io.Discard))
	if v := value(t, got, `tclb_config_errors{file="/a\"b\\c\nd`+"\uFFFD"+`.yaml"}`); v != "0" {
		t.Errorf("%s findings, want 0", v)
	}
}

func TestFamiliesAreSorted(t *testing.T) {
	if !slices.IsSortedFunc(families, func(a, b family) int { return strings.Compare(a.name, b.name) }) {
		t.Error("families are not sorted by name")
	}
}

func TestSameAddressInTwoProtocolsIsOneSeries(t *testing.T) {
	got := scrapeText(t, newHandler(t, apitest.NewView(), apitest.NewMaps(), io.Discard))
	if v := value(t, got, `tclb_connections_total{service="dns",backend="192.0.2.106:53"}`); v != "4" {
		t.Errorf("%s connections, want 1 by UDP and 3 by TCP", v)
	}
}

func TestUnreadableMapLeavesTheRest(t *testing.T) {
	m := apitest.NewMaps()
	m.PairsErr = errors.New("map is gone")
	var log bytes.Buffer
	got := scrapeText(t, newHandler(t, apitest.NewView(), m, &log))
	if v := value(t, got, "tclb_services"); v != "3" {
		t.Errorf("%s services, want 3", v)
	}
	if strings.Contains(got, "tclb_packets_total{") || !strings.Contains(got, "# TYPE tclb_packets_total counter") {
		t.Error("traffic that cannot be read must be left out, and its family named")
	}
	if !strings.Contains(log.String(), "map is gone") {
		t.Errorf("log: %s", &log)
	}
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func BenchmarkScrapeOf5000Services(b *testing.B) {
	v, m := apitest.NewView(), apitest.NewMaps()
	v.ServiceValues, v.BackendValues = nil, nil
	for i := range 5000 {
		name := fmt.Sprintf("service-%d", i)
		v.ServiceValues = append(v.ServiceValues, view.Service{Service: lb.Service{Name: name}, ID: uint32(i + 1)})
		for j := range 5 {
			id := uint32(5*i + j + 1)
			address := netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)})
			v.BackendValues = append(v.BackendValues, view.Backend{ID: id, Service: name, Address: address, Port: 80, Protocol: lb.TCP})
		}
	}
	h := newHandler(b, v, m, io.Discard)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(discard{http.Header{}}, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}
