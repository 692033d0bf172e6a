package docs_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A command is what its --help says of it.
type command struct {
	path  string // "weir rule add"
	words []string
	many  bool            // the last word may come more than once
	flags map[string]bool // with dashes; whether it takes a value
	subs  []string
}

var (
	usageLine = regexp.MustCompile(`(?m)^Usage:\n  (weir.*)$`)
	flagLine  = regexp.MustCompile(`(?m)^ {2,6}(?:(-\w), )?(--[\w-]+)( \S.*?)?(?: {2,}|$)`)
	subLine   = regexp.MustCompile(`(?m)^  ([a-z-]+) {2,}`)
)

// commands asks the binary, built from this tree, about all of its commands.
func commands(t *testing.T) map[string]command {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "weir")
	if out, err := exec.Command("go", "build", "-o", binary, "../cmd/weir").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all := map[string]command{}
	var ask func(path []string)
	ask = func(path []string) {
		out, err := exec.Command(binary, append(path[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s --help: %v\n%s", strings.Join(path, " "), err, out)
		}
		c := command{path: strings.Join(path, " "), flags: map[string]bool{}}
		help, inherited, _ := strings.Cut(string(out), "\nGlobal Flags:\n")
		for _, m := range flagLine.FindAllStringSubmatch(help+"\n"+inherited, -1) {
			c.flags[m[2]] = m[3] != ""
			if m[1] != "" {
				c.flags[m[1]] = m[3] != ""
			}
		}
		if m := usageLine.FindStringSubmatch(help); m != nil {
			for _, word := range strings.Fields(strings.TrimPrefix(m[1], c.path)) {
				if strings.HasPrefix(word, "-") {
					break // flags that cannot be left out
				}
				if word != "[flags]" && word != "[command]" {
					c.many = strings.HasSuffix(word, "...")
					c.words = append(c.words, word)
				}
			}
		}
		if _, list, ok := strings.Cut(help, "\nAvailable Commands:\n"); ok {
			list, _, _ = strings.Cut(list, "\n\n")
			for _, m := range subLine.FindAllStringSubmatch(list, -1) {
				c.subs = append(c.subs, m[1])
			}
		}
		all[c.path] = c
		for _, sub := range c.subs {
			if sub != "help" && sub != "completion" {
				ask(append(slices.Clone(path), sub))
			}
		}
	}
	ask([]string{"weir"})
	if len(all) < 15 {
		t.Fatalf("the binary speaks of %d commands only", len(all))
	}
	return all
}

// split takes a shell's line apart as far as the pages need it: quotes, and
// the end of a command.
func split(line string) (words []string) {
	var word strings.Builder
	quote, started := rune(0), false
	flush := func() {
		if started {
			words = append(words, word.String())
			word.Reset()
			started = false
		}
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, started = r, true
		case r == ' ':
			flush()
		case strings.ContainsRune("|>;&#", r) && !started:
			return words
		default:
			word.WriteRune(r)
			started = true
		}
	}
	flush()
	return words
}

// check says what is wrong with a command line; loose is for mentions of a
// command that leave out its arguments.
func check(all map[string]command, line string, loose bool) error {
	words := split(line)
	for len(words) > 0 && (words[0] == "sudo" || words[0] == "$") {
		words = words[1:]
	}
	if len(words) == 0 || filepath.Base(words[0]) != "weir" {
		return nil
	}
	c, words := all["weir"], words[1:]
	for len(words) > 0 && len(c.subs) > 0 && !strings.HasPrefix(words[0], "-") {
		if words[0] == "completion" || words[0] == "oci-runtime" {
			return nil
		}
		next, ok := all[c.path+" "+words[0]]
		if !ok {
			return fmt.Errorf("%q: there is no %q", line, c.path+" "+words[0])
		}
		c, words = next, words[1:]
	}
	arguments := 0
	for i := 0; i < len(words); i++ {
		name, _, joined := strings.Cut(words[i], "=")
		if !strings.HasPrefix(name, "-") {
			arguments++
			continue
		}
		value, ok := c.flags[name]
		if !ok {
			return fmt.Errorf("%q: %s has no flag %s", line, c.path, name)
		}
		if value && !joined {
			i++
		}
	}
	if loose || arguments == len(c.words) || c.many && arguments > len(c.words) {
		return nil
	}
	return fmt.Errorf("%q: %s takes %v", line, c.path, c.words)
}

var mention = regexp.MustCompile("`((?:sudo )?weir [^`]*)`")

func TestCommandLinesOfThePagesAreUnderstood(t *testing.T) {
	all := commands(t)
	list, prose := blocks(t)
	checked := 0
	for _, b := range list {
		for line := range strings.Lines(b.text) {
			line = strings.TrimSuffix(line, "\n")
			if b.info == "console" && !strings.HasPrefix(line, "$ ") || b.info != "console" && b.info != "sh" {
				continue
			}
			checked++
			if err := check(all, line, false); err != nil {
				t.Errorf("%s: %v", b.at(), err)
			}
		}
	}
	for page, text := range prose {
		for _, m := range mention.FindAllStringSubmatch(text, -1) {
			checked++
			if err := check(all, m[1], true); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d command lines were found", checked)
	}
}

func TestCheckOfCommandLinesFindsMistakes(t *testing.T) {
	all := commands(t)
	for _, line := range []string{
		"sudo weir atach web", "weir session mend web", "weir attach web --alow-all", "weir attach", "weir detach a b",
		"weir rule add deny", "$ weir events -x",
	} {
		if check(all, line, false) == nil {
			t.Errorf("%q passes", line)
		}
	}
	for _, line := range []string{
		"sudo weir attach web --allow '*.a.example:443' --ttl=1h", "weir test a b c", "weir events -f -o json | grep deny", "curl weir",
	} {
		if err := check(all, line, false); err != nil {
			t.Error(err)
		}
	}
}

// TestCommandReferenceIsComplete: each command has a heading, and each of its
// flags is named below it.
func TestCommandReferenceIsComplete(t *testing.T) {
	sections := map[string]string{} // by command
	current := ""
	for line := range strings.Lines(read(t, "reference/commands.md")) {
		if m := heading.FindStringSubmatch(line); m != nil {
			current = m[1]
		}
		sections[current] += line
	}
	common := []string{"--socket", "--output", "-o", "--help", "-h"}
	for path, c := range commands(t) {
		if path == "weir" {
			continue
		}
		title := strings.Join(append([]string{path}, c.words...), " ")
		section, ok := sections[title]
		if !ok {
			t.Errorf("reference/commands.md has no heading %q", title)
			continue
		}
		for flag := range c.flags {
			if !slices.Contains(common, flag) && !strings.Contains(section, "`"+flag) {
				t.Errorf("reference/commands.md, %q, does not speak of %s", title, flag)
			}
		}
	}
}
