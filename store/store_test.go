package store

import (
	"context"
	"database/sql"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/migrations"
	"weir/rules"
)

// noon is the clock of these tests, with a part that is finer than is stored.
var noon = time.Date(2026, 5, 1, 12, 0, 0, 123_456_789, time.FixedZone("CEST", 7200))

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fresh(t testing.TB) *Store {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "weir.db"))
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.Path())
}

// must is for calls that cannot go wrong in a test that has come this far.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data dir?#%")
	s := open(t, filepath.Join(dir, "weir.db"))
	must[Rule](t)(s.AddRule(t.Context(), rules.Rule{Destination: "*", Action: rules.ActionDeny, Created: noon}))
	if err := s.Backup(t.Context(), filepath.Join(dir, "backup.db")); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", f.Name(), info.Mode())
		}
	}
	if d := cmp.Diff([]string{"backup.db", "weir.db", "weir.db-shm", "weir.db-wal", "weir.db.lock"}, names); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v, want mode 0700", info.Mode(), err)
	}

	// One that was made by hand and is readable by all is closed.
	s.Close()
	if err := os.Chmod(s.Path(), 0o644); err != nil {
		t.Fatal(err)
	}
	open(t, s.Path())
	if info, err := os.Stat(s.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("reopened file: %v, %v, want mode 0600", info.Mode(), err)
	}
}

func TestPragmas(t *testing.T) {
	s := fresh(t)
	for name, want := range map[string]string{"journal_mode": "wal", "foreign_keys": "1", "busy_timeout": "5000"} {
		for which, db := range map[string]*sql.DB{"writer": s.writer, "readers": s.readers} {
			var got string
			if err := db.QueryRow("PRAGMA " + name).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s = %q, %v, want %q", which, name, got, err, want)
			}
		}
	}
	if _, err := s.readers.Exec(`DELETE FROM rules`); err == nil {
		t.Error("a reader wrote")
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	s := fresh(t)
	_, err := Open(t.Context(), s.Path())
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("second Open = %v, want ErrInUse", err)
	}
	for _, want := range []string{s.Path(), "--data-dir", "pid "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	reopen(t, s) // closing gives it free
}

func TestErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is not a database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "folder.db")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{garbage, "restore a backup"},
		{filepath.Join(file, "weir.db"), "is not a directory"},
		{folder, "a directory is where"},
		{"/proc/weir/weir.db", "/proc/weir/weir.db"},
	} {
		s, err := Open(t.Context(), c.path)
		if err == nil {
			s.Close()
			t.Errorf("%s was opened", c.path)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("error %q does not say %q and the path", err, c.want)
		}
	}
}

// What root, who runs these tests, does not run into.
func TestErrorsOfOtherMachines(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EACCES: "run weir serve as root",
		syscall.EROFS:  "read-only file system",
		syscall.ENOSPC: "free space in /data",
		syscall.EDQUOT: "free space in /data",
	} {
		got := explain("/data/weir.db", "opening it", &os.PathError{Op: "open", Path: "/data/weir.db", Err: err})
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), "database /data/weir.db: opening it") {
			t.Errorf("%v is explained as %q, want %q in it", err, got, want)
		}
	}
}

func TestDamageIsReported(t *testing.T) {
	s := fresh(t)
	for i := range 2000 {
		must[Rule](t)(s.AddRule(t.Context(), rules.Rule{Destination: strings.Repeat("x", 60) + string(rune('a'+i%26)), Action: rules.ActionDeny, Created: noon}))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	for i := 40 * 4096; i < len(b); i++ {
		b[i] = 0xa5
	}
	if err := os.WriteFile(s.Path(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.Path())
	if _, err := s.Rules(t.Context(), RuleFilter{}); err == nil || !strings.Contains(err.Error(), "restore a backup") {
		t.Errorf("Rules of a damaged file = %v, want the way out", err)
	}
}

func TestDiskFull(t *testing.T) {
	s := fresh(t)
	// The same error as that of a full disk, without one.
	if _, err := s.writer.Exec("PRAGMA max_page_count = 40"); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 1000 {
		if err = s.PutPolicy(t.Context(), Policy{Name: "p", Text: strings.Repeat("x", 200_000), Updated: noon}); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "free space in "+filepath.Dir(s.Path())) {
		t.Errorf("write to a full disk = %v, want what to do", err)
	}
	if err := s.PutPolicy(t.Context(), Policy{Name: "small", Updated: noon}); err != nil {
		t.Errorf("a small write after it: %v", err)
	}
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	s := fresh(t)
	if _, err := s.writer.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), s.Path())
	var newer *migrations.NewerError
	if !errors.As(err, &newer) || newer.Have != 99 {
		t.Fatalf("Open = %v, want a NewerError of version 99", err)
	}
	for _, want := range []string{s.Path(), "version 99", "up to 3", "backup"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	after, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the newer database was written to")
	}
}

func TestBackup(t *testing.T) {
	s := fresh(t)
	r := must[Rule](t)(s.AddRule(t.Context(), rules.Rule{Destination: "a.test", Action: rules.ActionAllow, Created: noon}))
	file := filepath.Join(t.TempDir(), "it's a backup.db")
	if err := s.Backup(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), file); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("second Backup = %v, want that the file exists", err)
	}
	if err := s.DeleteRule(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	restored := open(t, file)
	got := must[[]Rule](t)(restored.Rules(t.Context(), RuleFilter{}))
	if d := cmp.Diff([]Rule{r}, got); d != "" {
		t.Errorf("rules of the backup (-want +got):\n%s", d)
	}
	if a, b := must[string](t)(s.InstallationID(t.Context())), must[string](t)(restored.InstallationID(t.Context())); a != b || len(a) != 26 {
		t.Errorf("installation ids %q and %q", a, b)
	}
}

func TestPolicies(t *testing.T) {
	s := fresh(t)
	at := noon.UTC().Truncate(time.Microsecond)
	for _, p := range []Policy{{"b", "version: 1\n", noon}, {"a", "old", noon}, {"a", `{"version": 1}`, noon.Add(time.Hour)}} {
		if err := s.PutPolicy(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutPolicy(t.Context(), Policy{Text: "x"}); err == nil {
		t.Error("a policy without a name was stored")
	}
	s = reopen(t, s)
	want := []Policy{{"a", `{"version": 1}`, at.Add(time.Hour)}, {"b", "version: 1\n", at}}
	if d := cmp.Diff(want, must[[]Policy](t)(s.Policies(t.Context()))); d != "" {
		t.Errorf("policies (-want +got):\n%s", d)
	}
	if err := s.DeletePolicy(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeletePolicy(t.Context(), "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second DeletePolicy = %v, want ErrNotFound", err)
	}
	if got := must[[]Policy](t)(s.Policies(t.Context())); len(got) != 1 {
		t.Errorf("%d policies left, want 1", len(got))
	}
}

func TestAttachments(t *testing.T) {
	s := fresh(t)
	at := noon.UTC().Truncate(time.Microsecond)
	web := Attachment{
		ContainerID: strings.Repeat("a", 64), Ref: "web", Name: "web", Runtime: "docker", NetNS: "4:4026532000",
		NetNSPath: "/proc/7/ns/net", Interfaces: []string{"veth1", "veth2"}, Closed: []string{"tcp 10.0.0.2:5 → 1.2.3.4:443"},
		StartedAt: at, AttachedAt: at.Add(time.Minute), Desired: Attached,
	}
	bare := Attachment{ContainerID: "netns:4-7", Ref: "netns:/run/netns/x", AttachedAt: at, Desired: Detached}
	for _, a := range []Attachment{web, bare} {
		if err := s.PutAttachment(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	names := []Name{
		{"a.test", netip.MustParseAddr("192.0.2.1"), at},
		{"a.test", netip.MustParseAddr("2001:db8::1"), at.Add(time.Hour)},
	}
	if err := s.PutNames(t.Context(), web.ContainerID, append([]Name{{"old.test", netip.MustParseAddr("192.0.2.9"), at}}, names...)); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNames(t.Context(), web.ContainerID, append(names, Name{"a.test", names[1].Addr, at})); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNames(t.Context(), "gone", names); !errors.Is(err, ErrNotFound) {
		t.Errorf("PutNames without an attachment = %v, want ErrNotFound", err)
	}
	web.NetNS, web.Desired = "4:4026532999", "" // restarted: a new namespace; its names stay
	if err := s.PutAttachment(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	web.Desired = Attached
	s = reopen(t, s)
	if d := cmp.Diff([]Attachment{bare, web}, must[[]Attachment](t)(s.Attachments(t.Context()))); d != "" {
		t.Errorf("attachments (-want +got):\n%s", d)
	}
	got := must[[]Name](t)(s.Names(t.Context(), web.ContainerID))
	if d := cmp.Diff(names, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}
	if err := s.DeleteAttachment(t.Context(), web.ContainerID); err != nil {
		t.Fatal(err)
	}
	if got := must[[]Name](t)(s.Names(t.Context(), web.ContainerID)); len(got) != 0 {
		t.Errorf("names of a deleted attachment: %v", got)
	}
	if err := s.DeleteAttachment(t.Context(), web.ContainerID); !errors.Is(err, ErrNotFound) {
		t.Errorf("second DeleteAttachment = %v, want ErrNotFound", err)
	}
	if err := s.PutAttachment(t.Context(), Attachment{Ref: "x"}); err == nil {
		t.Error("an attachment without a container was stored")
	}
	if err := s.PutAttachment(t.Context(), Attachment{ContainerID: "x", AttachedAt: at, Desired: "maybe"}); err == nil {
		t.Error("an unknown desired state was stored")
	}
}
