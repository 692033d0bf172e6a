package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/api"
	"weir/audit"
)

// askEvery is how often is looked whether questions came or went.
const askEvery = 250 * time.Millisecond

// An interview puts one question after the other to whoever sits at a terminal.
type interview struct {
	client    *api.Client
	container string // only its questions; "": all
	out       io.Writer
	keys      <-chan byte     // closed when nothing more can be typed
	skipped   map[string]bool // by id
}

// askTerminal asks until ctx ends.
func (c *common) askTerminal(ctx context.Context, container string, in *os.File, out io.Writer) error {
	restore, err := singleKeys(in)
	if err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	defer restore()
	keys := make(chan byte)
	go func() { // until the terminal or the process ends
		defer close(keys)
		for b := make([]byte, 1); ; {
			if _, err := in.Read(b); err != nil {
				return
			}
			select {
			case keys <- b[0]:
			case <-ctx.Done():
				return
			}
		}
	}()
	i := &interview{client: c.client(), container: container, out: out, keys: keys, skipped: map[string]bool{}}
	return i.run(ctx)
}

// singleKeys has a terminal hand over each key as it is pressed, unseen;
// Ctrl-C goes on to interrupt (termios(3)).
func singleKeys(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	now := *was
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &now); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, was) }, nil
}

func (i *interview) run(ctx context.Context) error {
	fmt.Fprintln(i.out, "Waiting for questions. Ctrl-C ends this; what is not answered is denied.")
	for {
		q, err := i.next(ctx)
		if err == nil {
			err = i.put(ctx, q)
		}
		if ctx.Err() != nil {
			fmt.Fprintln(i.out)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// open lists the questions that are left.
func (i *interview) open(ctx context.Context) ([]api.Question, error) {
	list, err := i.client.Questions(ctx, i.container)
	return slices.DeleteFunc(list, func(q api.Question) bool { return i.skipped[q.ID] }), err
}

// next waits for a question.
func (i *interview) next(ctx context.Context) (api.Question, error) {
	for {
		list, err := i.open(ctx)
		if err != nil {
			return api.Question{}, err
		}
		if len(list) > 0 {
			return list[0], nil
		}
		select {
		case <-ctx.Done():
			return api.Question{}, ctx.Err()
		case _, ok := <-i.keys: // a key that answers nothing
			if !ok {
				return api.Question{}, io.ErrUnexpectedEOF
			}
		case <-time.After(askEvery):
		}
	}
}

// put asks one question and gives the answer.
func (i *interview) put(ctx context.Context, q api.Question) error {
	fmt.Fprintf(i.out, "\n%s wants %s\n", audit.Printable(q.Container), audit.Printable(askedAbout(q)))
	if q.Binary != "" {
		fmt.Fprintf(i.out, "  program  %s\n", audit.Printable(q.Binary))
	}
	if q.Host != "" && q.Address != "" {
		fmt.Fprintf(i.out, "  address  %s\n", q.Address)
	}
	fmt.Fprintf(i.out, "  session  %s\n  why      %s\n", audit.Printable(q.SessionID), audit.Printable(q.Reason))

	key, err := i.key(ctx, q, "a allow, d deny; A, D once and only this; s skip", "adADs")
	if err != nil || key == 0 {
		return err
	}
	r := api.AnswerRequest{Verdict: "allow", For: "once", What: "endpoint"}
	switch key {
	case 's':
		i.skipped[q.ID] = true
		fmt.Fprintln(i.out, "skipped; it is denied if nobody else answers")
		return nil
	case 'd', 'D':
		r.Verdict = "deny"
	}
	if key == 'a' || key == 'd' {
		if key, err = i.key(ctx, q, r.Verdict+": o once (Enter), s for the session, g for good", "osg\n"); err != nil || key == 0 {
			return err
		}
		r.For = map[byte]string{'o': "once", '\n': "once", 's': "session", 'g': "global"}[key]
		if r.What, err = i.choose(ctx, q, r); err != nil || r.What == "" {
			return err
		}
	}
	a, err := i.client.Answer(ctx, q.ID, r)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		i.skipped[q.ID] = true
		fmt.Fprintln(i.out, err)
		return nil
	}
	fmt.Fprintf(i.out, "%s\n", map[string]string{"allow": "allowed", "deny": "denied"}[a.Verdict])
	if rule := a.Rule; rule != nil {
		fmt.Fprintf(i.out, "rule %s: %s\n", rule.ID, ruleText(rule.Source, rule.Action, rule.Destination, rule.Ports))
	}
	if a.Others > 0 {
		fmt.Fprintf(i.out, "%d more questions are answered with it\n", a.Others)
	}
	for _, text := range a.Warnings {
		fmt.Fprintf(i.out, "warning: %s\n", text)
	}
	return nil
}

// choose asks what an answer is about, and says which rule each would make; ""
// when the question ended meanwhile.
func (i *interview) choose(ctx context.Context, q api.Question, r api.AnswerRequest) (string, error) {
	byKey := map[byte]string{'\n': q.Choices[0].What}
	valid := "\n"
	for n, c := range q.Choices {
		text := fmt.Sprintf("%s %s ports %s, this time", r.Verdict, audit.Printable(c.Destination), c.Ports)
		if r.For != "once" {
			text = ruleText(r.For, r.Verdict, c.Destination, c.Ports)
		}
		if n == 0 {
			text += " (Enter)"
		}
		fmt.Fprintf(i.out, "  %c  %s\n", c.What[0], text)
		byKey[c.What[0]], valid = c.What, valid+c.What[:1]
	}
	key, err := i.key(ctx, q, "what", valid)
	if err != nil || key == 0 {
		return "", err
	}
	return byKey[key], nil
}

// ruleText is a rule as an answer makes it.
func ruleText(source, action, destination, ports string) string {
	return fmt.Sprintf("%s rule: %s %s ports %s", source, action, audit.Printable(destination), ports)
}

// key waits for one of some keys; 0 when the question ended before, which is
// said.
func (i *interview) key(ctx context.Context, q api.Question, prompt, valid string) (byte, error) {
	// Only the time changes: the line is written over.
	said := time.Duration(-1)
	ask := func() {
		if left := max(0, time.Until(q.ExpiresAt)).Round(time.Second); left != said {
			said = left
			fmt.Fprintf(i.out, "\r\x1b[K%s [%s] ", prompt, left)
		}
	}
	ask()
	defer fmt.Fprintln(i.out)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case key, ok := <-i.keys:
			if !ok {
				return 0, io.ErrUnexpectedEOF
			}
			if key == '\r' {
				key = '\n'
			}
			if strings.IndexByte(valid, key) >= 0 {
				return key, nil
			}
		case <-tick.C:
			list, err := i.open(ctx)
			if err != nil {
				return 0, err
			}
			if !slices.ContainsFunc(list, func(o api.Question) bool { return o.ID == q.ID }) {
				why, err := i.became(ctx, q)
				fmt.Fprintf(i.out, "\r\x1b[K%s", why)
				return 0, err
			}
			ask()
		}
	}
}

// became finds on record how a question ended. Its event is stored a moment
// after.
func (i *interview) became(ctx context.Context, q api.Question) (string, error) {
	for range 8 {
		page, err := i.client.Events(ctx, api.EventQuery{Container: q.ContainerID, Type: string(audit.Ask), Since: q.AskedAt, Limit: audit.MaxLimit})
		if err != nil {
			return "", err
		}
		for _, e := range page.Items {
			if id, how, over := audit.QuestionOf(e.Reason); over && id == q.ID {
				return audit.Printable(how), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(askEvery):
		}
	}
	return "the question is over", nil
}
