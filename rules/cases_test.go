package rules

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCases runs testdata/cases/*.txt; testdata/cases/README.md has the form.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no case files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s := newSituation()
			cases := 0
			lines := bufio.NewScanner(f)
			for n := 1; lines.Scan(); n++ {
				line := strings.TrimSpace(lines.Text())
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				if strings.HasPrefix(line, "situation") {
					s = newSituation()
					continue
				}
				isCase, err := s.run(line)
				if err != nil {
					t.Errorf("%s:%d: %s\n\t%v", file, n, line, err)
				}
				if isCase {
					cases++
				}
			}
			if lines.Err() != nil || cases == 0 {
				t.Errorf("%d cases: %v", cases, lines.Err())
			}
		})
	}
}

// situation is what the lines of a case file have said so far.
type situation struct {
	now      time.Time
	rules    map[Source][]Rule
	sessions []SessionState
	guard    Guard
	learning bool
	noBuilt  bool
}

func newSituation() *situation {
	return &situation{
		now:   time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
		rules: map[Source][]Rule{},
		guard: Guard{Hosts: map[netip.Addr]bool{}, ControlPorts: map[uint16]bool{}},
	}
}

func (s *situation) run(line string) (isCase bool, err error) {
	given, want, isCase := strings.Cut(line, "->")
	words := strings.Fields(given)
	verb, words := words[0], words[1:]
	var args []string
	opts := map[string]string{}
	for _, w := range words {
		if k, v, ok := strings.Cut(w, "="); ok {
			opts[k] = v
		} else {
			args = append(args, w)
		}
	}
	switch verb {
	case "rule":
		return false, s.rule(args, opts)
	case "session":
		return false, s.session(args, opts)
	case "host":
		s.guard.Hosts[netip.MustParseAddr(args[0])] = true
	case "control":
		port, err := strconv.ParseUint(args[0], 10, 16)
		s.guard.ControlPorts[uint16(port)] = true
		return false, err
	case "learning":
		s.learning = true
	case "no-builtin":
		s.noBuilt = true
	case "now":
		s.now, err = time.Parse(time.RFC3339, args[0])
		return false, err
	case "refuse":
		return true, s.refuse(args, opts, want)
	case "canonical":
		return true, s.canonical(args, opts, want)
	case "current":
		return true, s.current(args, opts, want)
	default:
		return true, s.decide(verb, args, opts, want)
	}
	return false, nil
}

func parseCaseRule(args []string, opts map[string]string) (Rule, error) {
	if len(args) != 4 {
		return Rule{}, fmt.Errorf("a rule is: rule LAYER ID allow|deny DESTINATION, got %q", args)
	}
	r := Rule{
		Source: Source(args[0]), ID: args[1], Action: Action(args[2]), Destination: args[3],
		Ports: opts["ports"], Transport: Transport(opts["transport"]), Container: opts["container"],
	}
	if b := opts["binaries"]; b != "" {
		r.Binaries = strings.Split(b, ",")
	}
	if x := opts["expires"]; x != "" {
		var err error
		if r.Expires, err = time.Parse(time.RFC3339, x); err != nil {
			return r, err
		}
	}
	if p := opts["protocol"]; p != "" {
		r.Endpoint = &Endpoint{Policy: r.ID, Protocol: Protocol(p), Allow: []RequestRule{{Methods: []string{"GET"}}}}
		for _, ip := range strings.Split(opts["allowed_ips"], ",") {
			if ip != "" {
				r.Endpoint.AllowedIPs = append(r.Endpoint.AllowedIPs, netip.MustParsePrefix(ip))
			}
		}
		r.Endpoint.Path = opts["path"]
		if r.Destination == "-" {
			r.Destination = ""
		}
	}
	return r, nil
}

func (s *situation) rule(args []string, opts map[string]string) error {
	r, err := parseCaseRule(args, opts)
	if err != nil {
		return err
	}
	if r, _, err = Canonical(r); err != nil {
		return err
	}
	r.Order = int64(len(s.rules[r.Source]))
	s.rules[r.Source] = append(s.rules[r.Source], r)
	return nil
}

func (s *situation) session(args []string, opts map[string]string) error {
	expires, err := time.Parse(time.RFC3339, opts["expires"])
	if err != nil {
		return err
	}
	s.sessions = append(s.sessions, SessionState{
		ID: args[0], Container: opts["container"], Seq: int64(len(s.sessions) + 1),
		Expires: expires, Ended: len(args) > 1 && args[1] == "ended",
	})
	return nil
}

func (s *situation) current(args []string, opts map[string]string, want string) error {
	got := "none"
	if c := Current(s.sessions, Container{ID: opts["id"], Name: args[0]}, s.now); c != nil {
		got = c.ID
	}
	if want = strings.TrimSpace(want); got != want {
		return fmt.Errorf("got session %s, want %s", got, want)
	}
	return nil
}

func (s *situation) refuse(args []string, opts map[string]string, want string) error {
	r, err := parseCaseRule(args, opts)
	if err != nil {
		return err
	}
	r.Destination = unquote(r.Destination)
	_, _, err = Canonical(r)
	if err == nil {
		return fmt.Errorf("accepted")
	}
	if want = strings.Trim(strings.TrimSpace(want), `"`); !strings.Contains(err.Error(), want) {
		return fmt.Errorf("got error %q, want %q in it", err, want)
	}
	return nil
}

func (s *situation) canonical(args []string, opts map[string]string, want string) error {
	r, err := parseCaseRule(args, opts)
	if err != nil {
		return err
	}
	r.Destination = unquote(r.Destination)
	r, warnings, err := Canonical(r)
	if err != nil {
		return err
	}
	got := r.Destination
	for _, extra := range [][2]string{{"*", r.Ports}, {"any", string(r.Transport)}, {"*", r.Container}} {
		if extra[1] != extra[0] {
			got += " " + extra[1]
		}
	}
	if len(warnings) > 0 {
		got += " warned"
	}
	if want = strings.TrimSpace(want); got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// unquote lets a case write bytes that would not survive in a text file.
func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return s
}

func (s *situation) policy() (*Policy, error) {
	stack := Stack{AllowAll: s.learning, Guard: s.guard, Session: "s1"}
	for source, rs := range s.rules {
		l, err := NewLayer(source, rs)
		if err != nil {
			return nil, err
		}
		stack.Layers = append(stack.Layers, l)
	}
	if !s.noBuilt {
		stack.Layers = append(stack.Layers, BuiltinLayer())
	}
	return Compile(stack), nil
}

func (s *situation) decide(verb string, args []string, opts map[string]string, want string) error {
	p, err := s.policy()
	if err != nil {
		return err
	}
	r := Request{Time: s.now, Container: Container{ID: opts["id"], Name: "web"}, Transport: TCP, Captured: true}
	if r.Container.ID == "" {
		r.Container.ID = strings.Repeat("c0ffee00", 8)
	}
	var known bool
	if r.Stage, known = map[string]Stage{"resolve": Resolve, "connect": Connect, "hello": Hello, "http": HTTP}[verb]; !known {
		return fmt.Errorf("unknown word %q", verb)
	}
	if err := readTarget(&r, args[0]); err != nil {
		return err
	}
	for _, a := range args[1:] {
		switch a {
		case "tls":
			r.Claim.Kind = ClaimTLS
		case "plain":
			r.Claim.Kind = ClaimHTTP
		case "silent":
		case "other":
			r.Claim.Kind = ClaimOther
		case "broken":
			r.Claim = Claim{Kind: ClaimBroken, Problem: "it hides its name (ECH)"}
		case "proven":
			r.Claim.Proven = true
		case "own":
			r.Captured = false
		case "udp":
			r.Transport = UDP
		case "noprogram":
			r.ProgramFailed = true
		default:
			return fmt.Errorf("unknown word %q", a)
		}
	}
	for k, v := range opts {
		switch k {
		case "sni":
			r.Claim.Kind, r.Claim.Name = ClaimTLS, v
		case "header":
			r.Claim.Kind, r.Claim.Name = ClaimHTTP, v
		case "container":
			r.Container.Name = v
		case "id":
		case "program":
			path := strings.Split(v, "<")
			r.Program = &Program{Path: path[0], Ancestors: path[1:]}
		case "get":
			r.HTTP = &HTTPRequest{Method: "GET", Target: v}
		case "post":
			r.HTTP = &HTTPRequest{Method: "POST", Target: v}
		default:
			return fmt.Errorf("unknown option %q", k)
		}
	}
	return compareDecision(p, r, want)
}

// readTarget reads [NAME[,NAME…]@]ADDRESS:PORT, or a name at Resolve.
func readTarget(r *Request, s string) error {
	if r.Stage == Resolve {
		r.Names = []string{unquote(s)}
		return nil
	}
	names, rest, named := strings.Cut(s, "@")
	if !named {
		rest = s
	} else {
		r.Names = strings.Split(names, ",")
	}
	at, err := netip.ParseAddrPort(rest)
	r.Addr, r.Port = at.Addr(), at.Port()
	return err
}

// compareDecision compares with VERDICT [LAYER [RULE]] ["part of the reason"].
func compareDecision(p *Policy, r Request, want string) error {
	d := p.Decide(r)
	want, reason, _ := strings.Cut(strings.TrimSpace(want), `"`)
	reason = strings.TrimSuffix(reason, `"`)
	got := []string{d.Verdict.String(), string(d.Layer), "-"}
	if d.Rule != nil {
		got[2] = d.Rule.ID
	}
	if d.NeedProgram {
		got[0] = "program?"
	}
	would := ""
	for i, w := range strings.Fields(want) {
		if rest, ok := strings.CutPrefix(w, "would="); ok {
			would = rest
		} else if i >= len(got) || got[i] != w {
			return fmt.Errorf("got %s because %s", strings.Join(got, " "), d.Reason)
		}
	}
	if !strings.Contains(d.Reason, reason) {
		return fmt.Errorf("got the reason %q, want %q in it", d.Reason, reason)
	}
	if would != "" && (d.Would == nil || d.Would.Verdict.String() != would) {
		return fmt.Errorf("got would %+v, want %s", d.Would, would)
	}
	if strings.ContainsAny(d.Reason, "\n\x00") || d.Reason == "" {
		return fmt.Errorf("the reason is not one line: %q", d.Reason)
	}
	x := p.Explain(r)
	if x.Verdict != d.Verdict || x.Rule != d.Rule || x.Reason != d.Reason || len(x.Trace) == 0 {
		return fmt.Errorf("explained differently: %+v", x)
	}
	return nil
}
