package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Change says what happened in a directory.
type Change struct {
	// Names are the files that were closed after writing, renamed into place or away, or removed.
	Names []string
	// All says that any file may have changed: at the start, from time to time, and when events
	// were lost.
	All bool
}

// Times of a watch.
const (
	// rereadEvery bounds how long a change stays unseen whose event never came, as on network file
	// systems.
	rereadEvery = 30 * time.Second
	// retryEvery is how often a directory is looked for that is not there.
	retryEvery = time.Second
)

// watchMask: a file counts when it is complete, so modifications are of no interest. Links need no
// writing, so they count when they are made.
const watchMask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CREATE |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// Watch calls changed for what happens in a directory, until ctx ends. The first call, with All set,
// comes at once. A directory that is missing is waited for; one that is replaced is found again.
//
// It uses inotify itself: the usual library does not tell when a file is closed after writing, and to
// wait for writers to pause instead would read half files and be late.
func Watch(ctx context.Context, dir string, log *slog.Logger, changed func(Change)) error {
	w := &watcher{dir: dir, log: log, changed: changed}
	for {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // to be stopped is no error
		}
		if err != nil && !w.complained {
			log.Warn("directory cannot be watched, looking again every second", "dir", dir, "err", err)
			w.complained = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryEvery):
		}
	}
}

type watcher struct {
	dir        string
	log        *slog.Logger
	changed    func(Change)
	complained bool
}

// follow watches one incarnation of the directory.
func (w *watcher) follow(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.changed(Change{All: true})
		return fmt.Errorf("make inotify instance: %w", err)
	}
	file := os.NewFile(uintptr(fd), "inotify") // with the runtime's poller, so deadlines work
	defer file.Close()
	stop := context.AfterFunc(ctx, func() { _ = file.Close() })
	defer stop()
	_, err = unix.InotifyAddWatch(fd, w.dir, watchMask)
	// Read after the watch stands: what happens from here on is an event.
	w.changed(Change{All: true})
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.dir, err)
	}
	w.complained = false
	return w.events(file)
}

// events reads until the directory goes.
func (w *watcher) events(file *os.File) error {
	buf := make([]byte, 64<<10)
	for {
		if err := file.SetReadDeadline(time.Now().Add(rereadEvery)); err != nil {
			return fmt.Errorf("read events of %s: %w", w.dir, err)
		}
		n, err := file.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.changed(Change{All: true})
			continue
		case err != nil:
			return fmt.Errorf("read events of %s: %w", w.dir, err)
		}
		change, gone := w.decode(buf[:n])
		if change.All || len(change.Names) > 0 {
			w.changed(change)
		}
		if gone {
			return nil
		}
	}
}

// decode turns raw events into one change. gone says that the directory is another one now.
func (w *watcher) decode(buf []byte) (change Change, gone bool) {
	seen := make(map[string]bool)
	for len(buf) >= unix.SizeofInotifyEvent {
		event := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(event.Len)
		name := unix.ByteSliceToString(buf[unix.SizeofInotifyEvent:end])
		buf = buf[end:]
		switch {
		case event.Mask&unix.IN_Q_OVERFLOW != 0:
			change.All = true
		case event.Mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
			change.All, gone = true, true
		case name == "" || seen[name]:
		case event.Mask&unix.IN_CREATE != 0 && !isLink(filepath.Join(w.dir, name)):
		default:
			seen[name] = true
			change.Names = append(change.Names, name)
		}
	}
	return change, gone
}

// isLink says whether a new file was complete from the start: a symbolic link, or another name of a
// file that existed before.
func isLink(path string) bool {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false
	}
	return st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Nlink > 1
}
