package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// registry is an npm registry with the packages named, each of one version.
func registry(t testing.TB, base string, names ...string) http.Handler {
	t.Helper()
	answers := map[string][]byte{} // by decoded path: npm asks for /@scope%2ftool
	for _, name := range names {
		var packed bytes.Buffer
		gz := gzip.NewWriter(&packed)
		archive := tar.NewWriter(gz)
		for file, text := range map[string]string{
			"package/package.json": fmt.Sprintf(`{"name":%q,"version":"1.0.0"}`, name), "package/index.js": "module.exports = 'installed'\n",
		} {
			if err := archive.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(archive, text)
		}
		archive.Close()
		gz.Close()
		sum := sha512.Sum512(packed.Bytes())
		tarball := "/" + name + "/-/package-1.0.0.tgz"
		description := map[string]any{"name": name, "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{
			"1.0.0": map[string]any{"name": name, "version": "1.0.0", "dist": map[string]string{
				"tarball": base + tarball, "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
			}},
		}}
		text, err := json.Marshal(description)
		if err != nil {
			t.Fatal(err)
		}
		answers[tarball], answers["/"+name] = packed.Bytes(), text
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if bytes.HasPrefix(answer, []byte("{")) {
			w.Header().Set("Content-Type", "application/json")
		}
		w.Write(answer)
	})
}

// npmProgram returns the arguments that mount this machine's node and npm into
// a container, where they are /opt/node and /opt/npm.
func npmProgram(t testing.TB) []string {
	t.Helper()
	program := func(name string) string {
		file, err := exec.LookPath(name)
		if err == nil {
			file, err = filepath.EvalSymlinks(file)
		}
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	// The npm that is installed is a link to npm/bin/npm-cli.js.
	return []string{"-v", program("node") + ":/opt/node:ro", "-v", filepath.Dir(filepath.Dir(program("npm"))) + ":/opt/npm:ro"}
}

// attempt is one line for testdata/attempts.py.
type attempt map[string]any

// attempts makes requests by python and returns what became of each.
func (b *Box) attempts(list []attempt) []string {
	b.t.Helper()
	text, err := json.Marshal(list)
	if err != nil {
		b.t.Fatal(err)
	}
	out, ok := b.pipe(string(text), "python3", "/attempts.py")
	results := strings.Fields(out)
	if !ok || len(results) != len(list) {
		b.t.Fatalf("%d attempts, %d results: %s", len(list), len(results), out)
	}
	return results
}

func TestLearnedPolicyAdmitsTheJobAndNothingElse(t *testing.T) {
	o := newOutside(t)
	outside := newAuthority(t)
	names := map[string]string{
		"registry.example": "198.51.100.31", "git.example": "198.51.100.32", "items.example": "198.51.100.33", "api.example": "198.51.100.34",
		"evil.example": "198.51.100.66", "sub.registry.example": "198.51.100.66", "sub.api.example": "198.51.100.66",
	}
	for name, address := range names {
		o.addName(name, address)
	}
	var reached atomic.Int64
	elsewhere := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	o.serveHTTP("198.51.100.31:443", registry(t, "https://registry.example", "left-pad", "@scope/tool"), outside.certificate("registry.example"))
	o.serveHTTP("198.51.100.32:80", gitServer(t))
	o.serveHTTP("198.51.100.33:8443", greet("items"), outside.certificate("items.example"))
	api := o.record("198.51.100.34:443", serverConfig(outside, "api.example"), nil)
	for _, address := range []string{"198.51.100.31:8443", "198.51.100.32:9418", "198.51.100.33:443", "198.51.100.34:8443", "198.51.100.66:443"} {
		o.serveHTTP(address, elsewhere, outside.certificate("evil.example", "registry.example", "items.example", "api.example"))
	}
	o.serveHTTP("198.51.100.66:80", elsewhere)
	o.serveHTTP("198.51.100.31:80", elsewhere)

	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := newBox(t, npmProgram(t)...)
	pem := outside.install(box)
	script, err := os.ReadFile("testdata/attempts.py")
	if err != nil {
		t.Fatal(err)
	}
	if out, ok := box.pipe(string(script), "sh", "-c", "cat >/attempts.py"); !ok {
		t.Fatal(out)
	}
	w.run("attach", box.Name, "--allow-all", "--session", "job", "--ttl", "30m")
	box.trust(w)
	w.run("learn", box.Name, "--inspect", "api.example")

	// Malformed GraphQL and what is no GraphQL at all must not break while learning.
	tolerant := []attempt{
		{"method": "POST", "url": "https://api.example/graphql", "json": map[string]string{"query": "{ unfinished"}},
		{"method": "POST", "url": "https://api.example/upload", "data": strings.Repeat("x", 3<<20)},
	}
	for i, status := range box.attempts(tolerant) {
		if status != "200" {
			t.Errorf("while learning, %v: %s", tolerant[i]["url"], status)
		}
	}
	if requests, _ := api.take(); len(requests) != 2 || requests[0].Body != `{"query": "{ unfinished"}` || len(requests[1].Body) != 3<<20 {
		t.Errorf("while learning, requests were changed on their way: %d", len(requests))
	}
	w.waitEvent(box.Name, "the malformed request", func(e Event) bool { return e.Type == "http" && strings.Contains(e.Reason, "not readable as GraphQL") })
	start := w.waitEvent(box.Name, "the upload", func(e Event) bool { return e.Path == "/upload" }).Time
	since := start.Add(time.Microsecond).Format(time.RFC3339Nano)

	viewer := map[string]any{"query": "query Viewer { viewer { login } }"}
	job := func() (problems string) {
		if out, ok := box.sh("rm -rf /job && mkdir /job && cd /job && echo '{\"name\":\"job\"}' >package.json && " +
			"/opt/node /opt/npm/bin/npm-cli.js install --cafile " + pem + " --registry https://registry.example/ --no-audit --no-fund --no-update-notifier --prefer-online --cache /job/cache left-pad @scope/tool && " +
			"test -f node_modules/left-pad/index.js && test -f node_modules/@scope/tool/index.js"); !ok {
			problems += "npm install: " + out
		}
		if out, ok := box.sh("rm -rf /clone && git clone -q http://git.example/repo.git /clone && git -C /clone log --oneline"); !ok || !strings.Contains(out, "first commit") {
			problems += "git clone: " + out
		}
		for i, status := range box.attempts([]attempt{
			{"url": "https://items.example:8443/", "verify": pem},
			{"method": "POST", "url": "https://api.example/graphql", "json": viewer},
			{"method": "POST", "url": "https://api.example/graphql", "json": map[string]any{"query": "mutation { addStar(id: 1) { id } }"}},
			{"url": "https://api.example/repos/7/issues"},
			{"url": "https://api.example/repos/8/issues"},
			{"method": "POST", "url": "https://api.example/repos/8/issues", "json": map[string]any{"title": "x"}},
		}) {
			if status != "200" {
				problems += fmt.Sprintf("attempt %d: %s\n", i, status)
			}
		}
		return problems
	}
	if problems := job(); problems != "" {
		t.Fatalf("while learning: %s", problems)
	}
	policy := w.run("learn", box.Name, "--since", since)
	for _, want := range []string{
		"allow: registry.example", "allow: git.example", "allow: items.example", "fields: [addStar]", "methods: [GET, POST]",
		"binaries: [/opt/node]", "/git-remote-http]", "python3", "operation_name: Viewer", "fields: [viewer]", `path: "/repos/*/issues"`, "protocol: graphql",
	} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy does not say %q:\n%s", want, policy)
		}
	}
	file := writeFile(t, "learned.yaml", policy)
	w.run("policy", "check", file)
	if out, code := w.try("policy", "replay", file, "--container", box.Name, "--since", since); code != 0 || !strings.Contains(out, "0 would be denied") {
		t.Errorf("the learned policy on its own record: exit %d\n%s", code, out)
	}
	narrower := writeFile(t, "narrower.yaml", strings.ReplaceAll(policy, "addStar", "removeStar"))
	if out, code := w.try("policy", "replay", narrower, "--container", box.Name); code != 1 || !strings.Contains(out, "addStar") {
		t.Errorf("a narrower policy: exit %d\n%s", code, out)
	}

	if out, code := w.try("learn", box.Name, "--apply"); code != 2 || !strings.Contains(out, "--yes") {
		t.Errorf("--apply without a terminal: exit %d\n%s", code, out)
	}
	out := w.run("learn", box.Name, "--since", since, "--apply", "--yes")
	if !strings.Contains(out, "job") || !strings.Contains(out, "enforce") {
		t.Errorf("applied: %s", out)
	}
	if problems := job(); problems != "" {
		t.Errorf("what was learned does not admit the job: %s\n%s", problems, policy)
	}
	api.take()

	graphQL := func(document string) attempt {
		return attempt{"method": "POST", "url": "https://api.example/graphql", "json": map[string]any{"query": document}}
	}
	neighbours := []attempt{
		// Other hosts, by name and by address.
		{"url": "http://evil.example/"}, {"url": "https://evil.example/", "verify": pem}, {"url": "https://sub.registry.example/", "verify": pem},
		{"url": "https://sub.api.example/"}, {"resolve": "evil.example"}, {"resolve": "sub.registry.example"}, {"resolve": "secret.git.example"},
		{"connect": []any{"198.51.100.66", 443}}, {"connect": []any{"198.51.100.66", 80}},
		// Other ports.
		{"connect": []any{"registry.example", 80}}, {"connect": []any{"registry.example", 8443}}, {"connect": []any{"git.example", 9418}},
		{"connect": []any{"items.example", 443}}, {"connect": []any{"api.example", 8443}},
		// Other programs.
		{"url": "https://registry.example/left-pad", "verify": pem}, {"url": "http://git.example/repo.git/info/refs?service=git-upload-pack"},
		// Other names on an address that is open.
		{"url": "https://198.51.100.33:8443/", "verify": false}, {"url": "https://198.51.100.34/graphql", "verify": false},
		// Other methods and paths.
		{"method": "DELETE", "url": "https://api.example/repos/7/issues"}, {"method": "PUT", "url": "https://api.example/repos/7/issues"},
		{"url": "https://api.example/repos/7"}, {"url": "https://api.example/repos/7/issues/1"}, {"url": "https://api.example/"},
		{"url": "https://api.example/repos/7/keys"}, {"method": "POST", "url": "https://api.example/upload", "data": "x"},
		{"url": "https://api.example/repos/7/issues", "headers": map[string]string{"Host": "evil.example"}},
		{"url": "https://api.example/graphql?query=mutation%7BdeleteRepository%7D"},
		// Other operations.
		graphQL("mutation { deleteRepository(id: 1) { id } }"), graphQL("mutation { addStar(id: 1) { id } deleteRepository(id: 1) { id } }"),
		graphQL("query Viewer { viewer { login } secrets }"), graphQL("{ organization { name } }"), graphQL("subscription { events }"),
		graphQL("{ unfinished"), graphQL("query Viewer { viewer: deleteAll }"),
	}
	if len(neighbours) < 30 {
		t.Fatalf("%d neighbours", len(neighbours))
	}
	for i, status := range box.attempts(neighbours) {
		if status != "failed" && status != "refused" {
			t.Errorf("never seen, and passed (%s): %v", status, neighbours[i])
		}
	}
	if out, ok := box.curl("--cacert", pem, "https://items.example:8443/"); ok {
		t.Errorf("another program passed: %s", out)
	}
	if requests, _ := api.take(); len(requests) > 0 {
		t.Errorf("requests reached api.example: %v", requests)
	}
	if n := reached.Load(); n > 0 {
		t.Errorf("%d requests reached servers that were never seen", n)
	}
}
