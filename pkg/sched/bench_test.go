package sched

import (
	"fmt"
	"testing"
)

var benchSizes = []int{3, 5, 100, 1000}

func BenchmarkNew(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			list := equalMembers(n)
			b.ReportAllocs()
			for b.Loop() {
				mustBuild(b, list)
			}
		})
	}
}

func mustBuild(b *testing.B, list []Member) *Base {
	base, err := New(list)
	if err != nil {
		b.Fatal(err)
	}
	return base
}

// BenchmarkChange is what a change of one backend costs: the base and the effective table.
func BenchmarkChange(b *testing.B) {
	for _, n := range benchSizes {
		list := equalMembers(n + 1)
		heavier := equalMembers(n)
		heavier[n/2].Weight = 150
		for name, to := range map[string][]Member{"add": list, "remove": list[:n-1], "weight": heavier} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				base := mustBuild(b, list[:n])
				b.ReportAllocs()
				for b.Loop() {
					changed := base.Clone()
					if _, err := changed.Update(to); err != nil {
						b.Fatal(err)
					}
					if _, err := changed.Table(changed.Excluded(to)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkTableFewServe is the worst case of the walk: nearly all are excluded.
func BenchmarkTableFewServe(b *testing.B) {
	for _, serve := range []int{1, 2, 10, 500} {
		b.Run(fmt.Sprint(serve), func(b *testing.B) {
			list := equalMembers(1000)
			for i := serve; i < len(list); i++ {
				list[i].Excluded = true
			}
			base := mustBuild(b, list)
			var table []uint32
			var err error
			for b.Loop() {
				if table, err = base.AppendTable(table[:0], base.Excluded(list)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
