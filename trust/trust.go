package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"software.sslmate.com/src/go-pkcs12"

	"weir/container"
)

// Dir is Weir's own directory in a container; Authority and JavaStore lie in it.
const (
	Dir       = "/etc/weir"
	Authority = Dir + "/ca.pem"
	JavaStore = Dir + "/truststore.p12"
)

// javaPassword is Java's own default; the store holds nothing secret.
const javaPassword = "changeit"

// maxBundle is far above any system's list of authorities.
const maxBundle = 16 << 20

// bundles are where images keep the list that their programs read, the usual
// place first. A symlink is followed, so a list is changed once.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // RHEL, Fedora
	"/etc/pki/tls/certs/ca-bundle.crt",                  // older RHEL
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // Alpine's libressl programs
}

// anchors are where the image's own tool (update-ca-certificates,
// update-ca-trust) looks for additions when it rebuilds the list.
var anchors = []string{
	"/usr/local/share/ca-certificates/weir.crt",
	"/etc/pki/ca-trust/source/anchors/weir.pem",
	"/etc/pki/trust/anchors/weir.pem",
}

// hashDir is where OpenSSL looks up an authority by the hash of its name.
const hashDir = "/etc/ssl/certs"

// Variable is an environment variable for programs with a list of their own.
type Variable struct {
	Name  string
	Value string
	For   string // which programs
}

// Result says what Install did.
type Result struct {
	Changed     []string // files, as seen in the container
	Environment []Variable
}

// Install adds an authority to a container. Installing again changes nothing.
func Install(root *container.Root, ca *x509.Certificate) (Result, error) {
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	in := &installation{root: root}
	bundle, list, err := in.bundles(own)
	if err == nil {
		err = in.extras(own, ca, list)
	}
	if err != nil {
		// All or nothing. What cannot be taken back is said as well.
		return Result{}, errors.Join(err, in.undo())
	}
	if bundle == "" {
		bundle = Authority
	}
	return Result{Changed: in.changed, Environment: environment(bundle)}, nil
}

// environment lists the variables; bundle is a list with everything in it.
func environment(bundle string) []Variable {
	return []Variable{
		{"NODE_EXTRA_CA_CERTS", Authority, "Node.js"},
		{"REQUESTS_CA_BUNDLE", bundle, "Python requests"},
		{"SSL_CERT_FILE", bundle, "Go, Python ssl, Ruby and others on OpenSSL"},
		{"CURL_CA_BUNDLE", bundle, "curl that was built without the system's list"},
		{"GIT_SSL_CAINFO", bundle, "Git"},
		{"AWS_CA_BUNDLE", bundle, "AWS CLI and SDKs"},
		{"DENO_CERT", Authority, "Deno"},
		{"JAVA_TOOL_OPTIONS", "-Djavax.net.ssl.trustStore=" + JavaStore + " -Djavax.net.ssl.trustStorePassword=" + javaPassword, "Java"},
	}
}

// installation is one Install under way.
type installation struct {
	root    *container.Root
	changed []string
	before  []before
	madeDir bool // Dir
}

// before is a file as it was; data nil: it was not there.
type before struct {
	name string
	data []byte
}

// write replaces a file and remembers what it was.
func (in *installation) write(name string, data []byte, mode fs.FileMode) error {
	old, err := in.root.ReadFile(name, maxBundle)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && bytes.Equal(old.Data, data) {
		return nil
	}
	if err := in.root.WriteFile(name, data, mode); err != nil {
		return err
	}
	in.changed = append(in.changed, name)
	in.before = append(in.before, before{name, old.Data})
	return nil
}

func (in *installation) undo() error {
	var errs []error
	for _, b := range in.before {
		if b.data == nil {
			errs = append(errs, in.root.Remove(b.name))
		} else {
			errs = append(errs, in.root.WriteFile(b.name, b.data, 0o644))
		}
	}
	if in.madeDir && in.root.IsDir(Dir) {
		errs = append(errs, in.root.RemoveDir(Dir))
	}
	return errors.Join(errs...)
}

// bundles adds own to every list that the image has. It returns the first one
// and what that held before.
func (in *installation) bundles(own []byte) (first string, list []byte, err error) {
	for _, name := range bundles {
		file, err := in.root.ReadFile(name, maxBundle)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if first == "" {
			first, list = name, without(file.Data, own)
		}
		if bytes.Contains(file.Data, own) {
			continue // installed before, or another name of the same file
		}
		if err := in.write(name, with(file.Data, own), 0o644); err != nil {
			return "", nil, err
		}
	}
	return first, list, nil
}

// What is added is marked, so that it can be taken out without a trace; the
// second mark stands behind a line that had no end.
var (
	mark       = []byte("# Weir interception authority\n")
	markJoined = []byte("\n# Weir interception authority, after a line break of its own\n")
)

func with(bundle, own []byte) []byte {
	m := mark
	if len(bundle) > 0 && bundle[len(bundle)-1] != '\n' {
		m = markJoined
	}
	return slices.Concat(bundle, m, own)
}

// without takes own out of a bundle, marked or not: the image's own tool may
// have rebuilt the list with it.
func without(bundle, own []byte) []byte {
	for _, m := range [][]byte{markJoined, mark, nil} {
		bundle = bytes.ReplaceAll(bundle, slices.Concat(m, own), nil)
	}
	return bundle
}

// extras writes what lies beside the lists: Weir's own directory, the anchors
// and OpenSSL's name by hash.
func (in *installation) extras(own []byte, ca *x509.Certificate, list []byte) error {
	in.madeDir = !in.root.IsDir(Dir)
	if err := in.root.Mkdir(Dir, 0o755); err != nil {
		return err
	}
	if err := in.write(Authority, own, 0o644); err != nil {
		return err
	}
	if err := in.javaStore(ca, list); err != nil {
		return err
	}
	for _, name := range anchors {
		if in.root.IsDir(path.Dir(name)) {
			if err := in.write(name, own, 0o644); err != nil {
				return err
			}
		}
	}
	if !in.root.IsDir(hashDir) {
		return nil
	}
	name, err := in.hashName(ca, own)
	if err != nil {
		return err
	}
	return in.write(name, own, 0o644)
}

// javaStore writes a PKCS #12 store with the image's authorities and Weir's.
func (in *installation) javaStore(ca *x509.Certificate, list []byte) error {
	// Its salt is random: written again it would differ for nothing.
	if _, err := in.root.ReadFile(JavaStore, maxBundle); err == nil {
		return nil
	}
	certs := []*x509.Certificate{ca}
	for block, rest := pem.Decode(list); block != nil; block, rest = pem.Decode(rest) {
		// What this machine cannot parse, Java is better without.
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, c)
		}
	}
	store, err := pkcs12.Modern.EncodeTrustStore(certs, javaPassword)
	if err != nil {
		return fmt.Errorf("trust store for Java: %w", err)
	}
	return in.write(JavaStore, store, 0o644)
}

// Uninstall takes the authority out again; what is not there is no error.
func Uninstall(root *container.Root, ca *x509.Certificate) error {
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})
	in := &installation{root: root}
	var errs []error
	for _, name := range bundles {
		file, err := root.ReadFile(name, maxBundle)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case bytes.Contains(file.Data, own):
			errs = append(errs, root.WriteFile(name, without(file.Data, own), 0o644))
		}
	}
	names := append([]string{Authority, JavaStore}, anchors...)
	if root.IsDir(hashDir) {
		name, err := in.hashName(ca, own)
		if err != nil {
			errs = append(errs, err)
		} else if file, err := root.ReadFile(name, maxBundle); err == nil && bytes.Equal(file.Data, own) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := root.RemoveDir(Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
