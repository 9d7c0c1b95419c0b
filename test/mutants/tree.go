package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tree is a copy of the sources that mutants may break, with a directory for the tests' own files.
type tree struct {
	dir       string
	tmp       string
	generated map[string][]byte // what `go generate` made of the unbroken C
}

// newTree copies the sources below root to a directory of their own. Its path is short, because
// tests make sockets below it.
func newTree(root string) (*tree, error) {
	top, err := os.MkdirTemp("", "tclbm")
	if err != nil {
		return nil, fmt.Errorf("copy the tree: %w", err)
	}
	t := &tree{dir: filepath.Join(top, "src"), tmp: filepath.Join(top, "t")}
	if err := errors.Join(os.Mkdir(t.tmp, 0o755), copyTree(root, t.dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("copy the tree: %w", err), t.remove())
	}
	return t, nil
}

func (t *tree) remove() error { return os.RemoveAll(filepath.Dir(t.dir)) }

// notSources are directories that builds write, and git's.
var notSources = []string{".git", "bin", "test/bench/out"}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // an editor's file, gone meanwhile
			}
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case entry.IsDir() && slices.Contains(notSources, filepath.ToSlash(relative)):
			return filepath.SkipDir
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case entry.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !entry.Type().IsRegular():
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}

// generate makes the BPF objects of the C in the tree.
func (t *tree) generate(ctx context.Context) error {
	out, err := t.command(ctx, "bpf", "go", "generate", "./...")
	if err != nil {
		return fmt.Errorf("go generate: %w\n%s", err, out)
	}
	return nil
}

// prepare makes the objects of the unbroken C and keeps them.
func (t *tree) prepare(ctx context.Context) error {
	if err := t.generate(ctx); err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(t.dir, "bpf", "*_bpfel.*"))
	if err != nil {
		return err
	}
	t.generated = make(map[string][]byte, len(paths))
	for _, path := range paths {
		if t.generated[path], err = os.ReadFile(path); err != nil {
			return fmt.Errorf("keep objects: %w", err)
		}
	}
	return nil
}

// mutate puts a mutant in and returns a function that takes it out again.
func (t *tree) mutate(ctx context.Context, m mutant) (restore func() error, err error) {
	path := filepath.Join(t.dir, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: mutant %s: %w", m.at, m.name, err)
	}
	broken, err := m.apply(string(text))
	if err != nil {
		return nil, err
	}
	restore = func() error {
		err := os.WriteFile(path, text, 0o644)
		if m.generates() {
			for path, object := range t.generated {
				err = errors.Join(err, os.WriteFile(path, object, 0o644))
			}
		}
		return err
	}
	if err := os.WriteFile(path, []byte(broken), 0o644); err != nil {
		return nil, errors.Join(err, restore())
	}
	if m.generates() {
		if err := t.generate(ctx); err != nil {
			return nil, errors.Join(err, restore())
		}
	}
	return restore, nil
}

// command runs a program in a directory of the tree and returns all that it wrote. As root it has
// its mounts to itself: a test that is killed leaves none.
func (t *tree) command(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = filepath.Join(t.dir, dir)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TMPDIR=") }),
		"TMPDIR="+t.tmp, "REQUIRE_ROOT=1", "GOWORK=off")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), err
}
