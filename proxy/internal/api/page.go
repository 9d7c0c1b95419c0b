package api

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
)

//go:embed page.html
var pageSource string

var pageTemplate = template.Must(template.New("page").Parse(pageSource))

// page is the status page: one file, no script, nothing loaded from elsewhere, so that it works
// through an SSH tunnel and needs no trust in anybody.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	var data struct {
		Status   Status
		Services []Service
	}
	var err error
	if data.Status, err = s.nodeStatus(); err != nil {
		s.fail(w, r, err)
		return
	}
	data.Services = s.serviceRows()
	var out bytes.Buffer // a template that fails half-way must not be a 200
	if err := pageTemplate.Execute(&out, data); err != nil {
		s.fail(w, r, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	_, _ = out.WriteTo(w)
}
