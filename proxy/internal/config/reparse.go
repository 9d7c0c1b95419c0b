package config

import (
	"bytes"
	"net/netip"
	"slices"
)

// ReparseServices is ParseServices for a new content of a file that was read before. Reading YAML is what
// a change costs most, so the services whose text is as it was are taken over. It is a shortcut for
// clean files of the usual form; whatever is not, is read as a whole. The result is the same.
func ReparseServices(before File, data []byte) File {
	if f, ok := reparse(before, data); ok {
		return f
	}
	return ParseServices(before.Name, before.Path, data)
}

func reparse(before File, data []byte) (File, bool) {
	old, ok := splitServices(before.Data)
	if !ok || len(before.Findings) > 0 || len(old) != len(before.Services) || len(data) > MaxFileSize {
		return File{}, false
	}
	if _, reason := badText(data); reason != "" {
		return File{}, false
	}
	items, ok := splitServices(data)
	if !ok {
		return File{}, false
	}
	f := File{Name: before.Name, Path: before.Path, Data: data, Services: make([]Definition, 0, len(items))}
	rep := &report{file: f.Path}
	names, vips := make(firsts[string]), make(firsts[netip.Addr])
	for i, it := range items {
		var d Definition
		if i < len(old) && bytes.Equal(it.text, old[i].text) {
			d = before.Services[i].moved(it.line - old[i].line)
		} else {
			d = it.read(rep, i)
		}
		f.checkUnique(rep, &d, names, vips)
		f.Services = append(f.Services, d)
	}
	return f, len(rep.findings) == 0
}

// item is the text of one element of the list of services.
type item struct {
	text []byte
	line int // of the file, from 1
}

// read decodes the i-th service. Line breaks in front make its positions those of the file.
func (it item) read(rep *report, i int) Definition {
	d := Definition{Service: defaultService()}
	root := parseDocument(rep, append(bytes.Repeat([]byte{'\n'}, it.line-1), it.text...))
	if root == nil || len(root.Content) != 1 {
		rep.add(start, keyFile, "not one service")
		return d
	}
	list := cursor{rep: rep, path: &path{key: "services"}}
	list.child(root.Content[0], path{index: i}).fields(d.read)
	return d
}

// moved returns d as it is some lines further down.
func (d Definition) moved(lines int) Definition {
	if lines == 0 {
		return d
	}
	for _, s := range []*spot{&d.name, &d.dsr, &d.fast} {
		if s.key != nil {
			s.at.line += lines
		}
	}
	d.vlans = slices.Clone(d.vlans)
	for i := range d.vlans {
		d.vlans[i].at.at.line += lines
		d.vlans[i].device.at.line += lines
	}
	d.vips, d.backends, d.nodes = slices.Clone(d.vips), slices.Clone(d.backends), slices.Clone(d.nodes)
	for _, spots := range [][]spot{d.vips, d.backends, d.nodes} {
		for i := range spots {
			spots[i].at.line += lines
		}
	}
	return d
}

// splitServices cuts a file at the dashes of its list of services. ok is false where that is not safe: the
// file has another form, or text in which a dash may mean something else.
func splitServices(data []byte) (items []item, ok bool) {
	if bytes.ContainsAny(data, "&*|>%\r") {
		return nil, false
	}
	inList, indent := false, -1 // of the dashes
	at := 0
	for line := 1; at < len(data); line++ {
		end := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		text := data[at:end]
		bare := bytes.TrimLeft(text, " ")
		depth := len(text) - len(bare)
		switch {
		case len(bytes.TrimSpace(bare)) == 0 || bare[0] == '#':
		case !inList:
			if inList = string(bytes.TrimRight(text, " \n")) == "services:"; !inList {
				return nil, false
			}
		case bytes.HasPrefix(bare, []byte("- ")) && (indent < 0 || depth == indent):
			indent = depth
			items = append(items, item{data[at:at], line})
		case indent < 0 || depth < indent+len("- "):
			return nil, false
		}
		if n := len(items); n > 0 {
			it := &items[n-1]
			it.text = it.text[:len(it.text)+len(text)]
		}
		at = end
	}
	return items, len(items) > 0
}
