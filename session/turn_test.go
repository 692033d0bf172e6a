package session

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestHealthyWhileWorkGetsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Conductor{}
		well := func(when string) {
			t.Helper()
			if err := c.Healthy(); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		well("nobody works")
		c.attaching.Lock()
		for range 3 { // one turn, several attachments
			time.Sleep(turnLimit)
			well("slow work on one attachment")
			c.attaching.step()
		}
		time.Sleep(turnLimit + time.Second)
		if err := c.Healthy(); err == nil {
			t.Error("nothing was done in this turn for more than a minute, and it counts as healthy")
		}
		c.attaching.Unlock()
		well("the work has ended after all")
		time.Sleep(2 * turnLimit)
		well("nobody has worked for a while")
	})
}
