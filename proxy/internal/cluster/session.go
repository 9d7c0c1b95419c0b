package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// Back-off between tries to connect.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Limits of a session.
const (
	callTimeout = 5 * time.Second  // of one request
	loadTimeout = 30 * time.Second // of reading everything
	leaveWithin = 2 * time.Second  // of what is done at the end
)

// connectUntil has one session after the other until ctx ends.
func (s *Source) connectUntil(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		began := s.now()
		err := s.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.now().Sub(began) > lastRetry {
			retry = firstRetry
		}
		if !errors.Is(err, errCompacted) {
			s.failed(s.explain(ctx, err))
		} else {
			s.Log.Info("changes in etcd were missed, reading everything again")
			retry = firstRetry
		}
		pause(ctx, retry/2+rand.N(retry)) // nodes do not all come at once
		retry = min(2*retry, lastRetry)
	}
}

// session connects, reads, and follows until something fails or ctx ends.
func (s *Source) session(ctx context.Context) error {
	if err := s.reach(ctx); err != nil {
		return err
	}
	link, err := s.dial(context.WithoutCancel(ctx)) // what is done at the end needs it
	if err != nil {
		return err
	}
	defer link.close()
	load, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	check, stop := context.WithTimeout(load, callTimeout)
	err = link.poke(check)
	stop()
	if err != nil {
		return err
	}
	all, revision, err := link.load(load)
	if err != nil {
		return err
	}
	s.begin(link, all, revision)
	defer s.end()
	g, inner := errgroup.WithContext(ctx)
	g.Go(func() error { return link.watch(inner, revision+1, s.takeBatch) })
	g.Go(func() error { return s.keepAlive(inner, link) })
	g.Go(func() error { return s.writeUntil(inner, link) })
	err = g.Wait()
	if ctx.Err() != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
		defer cancel()
		s.leave(last, link)
	}
	return err
}

// begin takes over what was read.
func (s *Source) begin(link kv, all map[string]item, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.mirror.replace(all, revision, now, s.Etcd.LeaseTTL)
	s.loaded, s.written, s.life, s.link = true, 0, now, link
	for key := range s.led {
		s.offered[key] = true
	}
	if s.status.Error != "" {
		s.Log.Info("connected to etcd", "endpoints", s.Etcd.Endpoints, "keys", len(all), "revision", revision)
	}
	s.status.Connected, s.status.Since, s.status.Error = true, now, ""
	kick(s.news)
	s.kickWrites()
}

func (s *Source) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = nil
}

// takeBatch takes changes over.
func (s *Source) takeBatch(b batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = s.now()
	if len(b.changes) == 0 {
		return
	}
	s.mirror.apply(b, s.now())
	kick(s.news)
}

// keepAlive renews the lease, and ends the session if etcd or the watch has fallen silent.
func (s *Source) keepAlive(ctx context.Context, link kv) error {
	every := s.Etcd.LeaseTTL / 3
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		lease, life := s.lease, s.life
		s.mu.Unlock()
		if silent := s.now().Sub(life); silent > 4*every {
			return fmt.Errorf("no sign of life from the watch for %s", silent.Round(time.Second))
		}
		call, cancel := context.WithTimeout(ctx, min(callTimeout, every))
		err := link.poke(call)
		if err == nil && lease != 0 {
			err = link.keep(call, lease)
		}
		cancel()
		if err = s.leaseLost(lease, err); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// failed notes why there is no session.
func (s *Source) failed(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected || s.status.Error != why {
		s.Log.Error("etcd cannot be used: what was known stays in force", "err", why)
	}
	if s.status.Connected {
		s.status.Since = s.now()
	}
	s.status.Connected, s.status.Error = false, why
}
