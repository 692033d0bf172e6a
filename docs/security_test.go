package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Each attempt in the table of security.md names tests, and they are there.
func TestAttemptsNameTestsThatExist(t *testing.T) {
	row := regexp.MustCompile(`^\| (\d+) \| (.+) \| (.+) \| (.+) \|$`)
	reference := regexp.MustCompile("^`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`$")
	sources := map[string]string{}
	source := func(folder string) string {
		if _, ok := sources[folder]; !ok {
			files, err := filepath.Glob(filepath.Join("..", folder, "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, file := range files {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(text)
			}
			sources[folder] = all.String()
		}
		return sources[folder]
	}
	rows := 0
	for line := range strings.Lines(read(t, "security.md")) {
		found := row.FindStringSubmatch(strings.TrimSpace(line))
		if found == nil {
			continue
		}
		rows++
		if found[1] != strconv.Itoa(rows) {
			t.Errorf("row %s follows row %d", found[1], rows-1)
		}
		for _, field := range strings.Fields(found[4]) {
			name := reference.FindStringSubmatch(field)
			if name == nil {
				t.Errorf("row %d: %s is not `package.Test`", rows, field)
			} else if !strings.Contains(source(name[1]), "\nfunc "+name[2]+"(") {
				t.Errorf("row %d: there is no %s in %s", rows, name[2], name[1])
			}
		}
	}
	if rows < 81 {
		t.Errorf("only %d rows", rows)
	}
}
