package migrations

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"
)

func TestUp(t *testing.T) {
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	entries, err := files.ReadDir("sql")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		version, err := Up(t.Context(), db)
		if err != nil || version != int64(len(entries)) {
			t.Fatalf("Up = %d, %v, want version %d: files are numbered without gaps", version, err, len(entries))
		}
	}

	rows, err := db.Query(`SELECT name, strict FROM pragma_table_list
		WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'goose_%'`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	tables := 0
	for rows.Next() {
		var name string
		var strict bool
		if err := rows.Scan(&name, &strict); err != nil {
			t.Fatal(err)
		}
		tables++
		if !strict {
			t.Errorf("table %s is not STRICT: SQLite would keep text in its number columns", name)
		}
	}
	if tables == 0 {
		t.Error("no tables")
	}

	if _, err := db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (1000, 1)`); err != nil {
		t.Fatal(err)
	}
	_, err = Up(t.Context(), db)
	var newer *NewerError
	if !errors.As(err, &newer) || newer.Have != 1000 || newer.Want != int64(len(entries)) {
		t.Errorf("Up of a newer database = %v, want a NewerError", err)
	}
}
