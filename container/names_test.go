package container

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestResolve(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	red, blue := prefix()+"-Red", prefix()+"-blue"
	newNetwork(t, red, "--ipv6", "--subnet", "fd77:7:"+strconv.FormatInt(int64(os.Getpid()%0xffff), 16)+"::/64")
	newNetwork(t, blue)
	web, db, lone, plain := prefix()+"-web", prefix()+"-DB", prefix()+"-lone", prefix()+"-plain"
	webID := docker(t, web, "--network", red, "--network-alias", "www")
	dbID := docker(t, db, "--network", red, "--network-alias", "data.store", "--network-alias", "www")
	run(t, "docker", "network", "connect", blue, db)
	loneID := docker(t, lone, "--network", blue, "--link", db+":linked")
	plainID := docker(t, plain)
	side := prefix() + "-webside"
	sideID := docker(t, side, "--network", "container:"+web)

	addrs := func(name, network string) []netip.Addr {
		c, err := r.Find(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Networks {
			if n.Name == network {
				return n.Addrs
			}
		}
		t.Fatalf("%s is not on %s", name, network)
		return nil
	}
	dbRed, dbBlue, webRed := addrs(db, red), addrs(db, blue), addrs(web, red)
	if len(dbRed) != 2 || !dbRed[0].Is4() || !dbRed[1].Is6() {
		t.Fatalf("addresses on %s: %v", red, dbRed)
	}
	webCt, err := r.Find(ctx, web)
	if err != nil {
		t.Fatal(err)
	}
	if n := webCt.Networks[0]; !n.UserDefined || !strings.HasPrefix(n.Bridge, "br-") || len(n.Gateways) == 0 {
		t.Errorf("network %+v", n)
	}
	tests := []struct {
		id, name string
		want     []netip.Addr
	}{
		{webID, db, dbRed},
		{webID, strings.ToUpper(db) + ".", dbRed},
		{webID, "data.store", dbRed},
		{webID, dbID[:12], dbRed},
		{webID, db + "." + red, dbRed},
		{webID, db + "." + strings.ToLower(red), dbRed},
		{webID, "data.store." + red, dbRed},
		{webID, db + "." + blue, nil},
		{webID, web, webRed},
		{webID, lone, nil},
		{webID, plain, nil},
		{webID, "example.com", nil},
		{webID, "", nil},
		{webID, ".", nil},
		{sideID, db, dbRed},
		{webCt.NetNSID.containerID(), db, dbRed},
		{loneID, db, dbBlue},
		{loneID, "linked", dbBlue},
		{webID, "linked", nil},
		{loneID, web, nil},
		{plainID, db, nil},
		{plainID, plain, nil},
		{"netns:1-2", db, nil},
	}
	for _, tt := range tests {
		got, err := r.Resolve(ctx, tt.id, tt.name)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%.12s asks %q: %v, %v; want %v", tt.id, tt.name, got, err, tt.want)
		}
	}
	if got, err := r.Resolve(ctx, webID, "www"); err != nil || len(got) != 4 {
		t.Errorf("an alias of two containers: %v, %v", got, err)
	}
	// What Docker's own DNS says.
	for _, name := range []string{db, "data.store", dbID[:12], db + "." + red} {
		out := run(t, "docker", "exec", web, "/bin/busybox", "nslookup", "-type=a", name, "127.0.0.11")
		if !strings.Contains(out, dbRed[0].String()) {
			t.Errorf("Docker's DNS on %q: %s", name, out)
		}
	}
	if got, err := r.Reverse(ctx, webID, dbRed[1]); err != nil || got != db+"."+red {
		t.Errorf("Reverse: %q, %v", got, err)
	}
	if got, err := r.Reverse(ctx, webID, dbBlue[0]); err != nil || got != "" {
		t.Errorf("Reverse on another network: %q, %v", got, err)
	}
}

func TestResolveFollowsEvents(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	net := prefix() + "-follow"
	newNetwork(t, net)
	asker := docker(t, prefix()+"-asker", "--network", net)
	w := watch(t, r)
	w.next("", Resync)
	name := prefix() + "-late"
	if got, err := r.Resolve(ctx, asker, name); err != nil || got != nil {
		t.Fatalf("before it starts: %v, %v", got, err)
	}
	id := docker(t, name, "--network", net)
	w.next(id, Started)
	got, err := r.Resolve(ctx, asker, name)
	if err != nil || len(got) != 1 {
		t.Fatalf("after it started: %v, %v", got, err)
	}
	before := r.all[0].snapshot.Load()
	if again, err := r.Resolve(ctx, asker, name); err != nil || !slices.Equal(again, got) || r.all[0].snapshot.Load() != before {
		t.Errorf("asked again: %v, %v; want the same snapshot", again, err)
	}
	if age := time.Since(before.at); age > freshWatched {
		t.Errorf("snapshot is %s old", age)
	}
	run(t, "docker", "rm", "-f", id)
	w.next(id, Removed)
	if got, err := r.Resolve(ctx, asker, name); err != nil || got != nil {
		t.Errorf("after it is gone: %v, %v", got, err)
	}
}
