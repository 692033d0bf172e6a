package redirect

import "testing"

// BenchmarkInstall is attaching to a container with one interface.
func BenchmarkInstall(b *testing.B) {
	l := newLab(b)
	ns := l.container("ct", 2)
	for b.Loop() {
		a, err := Install(b.Context(), ns, Spec{Name: "bench", Host: l.host})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := a.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
