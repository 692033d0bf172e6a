package main

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// fullDisk takes so many bytes and no more.
type fullDisk struct{ room int }

var errFull = errors.New("no space left")

func (d *fullDisk) Write(b []byte) (int, error) {
	if len(b) > d.room {
		return 0, errFull
	}
	d.room -= len(b)
	return len(b), nil
}

// A policy that was written in part must not look as if it were whole.
func TestOutputThatIsCutShortIsAnError(t *testing.T) {
	table := func(w io.Writer) {
		for i := range 1000 {
			fmt.Fprintf(w, "line %d\n", i)
		}
	}
	for _, room := range []int{0, 10, 1000, 8000} {
		if err := new(common).print(&fullDisk{room}, nil, table); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
	}
	if err := new(common).print(&fullDisk{1 << 20}, nil, table); err != nil {
		t.Error(err)
	}
}
