package rules

import (
	"net/netip"
	"testing"
)

func TestCanonicalInspectHost(t *testing.T) {
	for in, want := range map[string]string{
		"API.example.com.": "api.example.com", "api.example.com:8443": "api.example.com:8443", "192.0.2.1": "192.0.2.1",
		"::ffff:192.0.2.1": "192.0.2.1", "[2001:db8::1]:443": "[2001:db8::1]:443", "2001:DB8::1": "2001:db8::1", "bücher.example": "xn--bcher-kva.example",
	} {
		got, err := CanonicalInspectHost(in)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
		if again, err := CanonicalInspectHost(got); err != nil || again != got {
			t.Errorf("%q is not canonical: %q, %v", got, again, err)
		}
	}
	for _, bad := range []string{"", "*", "*.example.com", "a.example:0", "a.example:65536", "a.example:http", "a.example:", ":443", "[2001:db8::1]", "a b", "https://a.example"} {
		if got, err := CanonicalInspectHost(bad); err == nil {
			t.Errorf("%q was accepted as %q", bad, got)
		}
	}
}

func TestLearningLooksIntoHosts(t *testing.T) {
	inspect, err := InspectLayer([]string{"api.test:443", "198.51.100.9"})
	if err != nil {
		t.Fatal(err)
	}
	layers := []*Layer{mustLayer(t, Session, Rule{Destination: "shop.test", Action: ActionAllow}), BuiltinLayer()}
	learning := Compile(Stack{AllowAll: true, Inspect: inspect, Layers: layers})
	request := func(stage Stage, names []string, address string, port uint16, c Claim, h *HTTPRequest) Request {
		return Request{Stage: stage, Transport: TCP, Captured: true, Names: names, Addr: netip.MustParseAddr(address), Port: port, Claim: c, HTTP: h}
	}
	api, tlsAPI := []string{"api.test"}, Claim{Kind: ClaimTLS, Name: "api.test"}
	for _, c := range []struct {
		name    string
		r       Request
		want    Verdict
		relayed bool
	}{
		{"a name, before the hello", request(Connect, api, "198.51.100.1", 443, Claim{}, nil), Inspect, false},
		{"a name, confirmed", request(Hello, api, "198.51.100.1", 443, tlsAPI, nil), Inspect, true},
		{"a private address", request(Hello, api, "10.0.0.1", 443, tlsAPI, nil), Inspect, true},
		{"no name known, one proven", request(Hello, nil, "198.51.100.1", 443, Claim{Kind: ClaimTLS, Name: "api.test", Proven: true}, nil), Inspect, true},
		{"a name that is only claimed", request(Hello, nil, "198.51.100.1", 443, tlsAPI, nil), Allow, false},
		{"a claim that contradicts", request(Hello, []string{"shop.test"}, "198.51.100.1", 443, tlsAPI, nil), Allow, false},
		{"another port", request(Connect, api, "198.51.100.1", 8443, Claim{}, nil), Allow, false},
		{"another name", request(Connect, []string{"shop.test"}, "198.51.100.1", 443, Claim{}, nil), Allow, false},
		{"silence", request(Hello, api, "198.51.100.1", 443, Claim{}, nil), Allow, false},
		{"another protocol", request(Hello, api, "198.51.100.1", 443, Claim{Kind: ClaimOther}, nil), Allow, false},
		{"a broken hello", request(Hello, api, "198.51.100.1", 443, Claim{Kind: ClaimBroken, Problem: "ECH"}, nil), Allow, false},
		{"an address", request(Hello, nil, "198.51.100.9", 80, Claim{Kind: ClaimHTTP, Name: "198.51.100.9"}, nil), Inspect, true},
		{"the guard comes first", request(Connect, api, "169.254.169.254", 443, Claim{}, nil), Deny, false},
		{"a request", request(HTTP, api, "198.51.100.1", 443, tlsAPI, &HTTPRequest{Method: "DELETE", Target: "/a/../b%2Fc"}), Allow, true},
		{"an unreadable request", request(HTTP, api, "198.51.100.1", 443, tlsAPI, &HTTPRequest{Method: "GET", Target: "/%zz"}), Allow, true},
		{"an upgrade", request(HTTP, api, "198.51.100.1", 443, tlsAPI, &HTTPRequest{Method: "GET", Target: "/", Upgrade: "websocket"}), Allow, true},
	} {
		d := learning.Decide(c.r)
		if d.Verdict != c.want || (d.Endpoint != nil) != c.relayed {
			t.Errorf("%s: %s, endpoint %v: %s; want %s, relayed %v", c.name, d.Verdict, d.Endpoint != nil, d.Reason, c.want, c.relayed)
		}
		if d.Verdict != Deny && d.Layer != AllowAll || d.Would == nil {
			t.Errorf("%s: layer %s, would %v", c.name, d.Layer, d.Would)
		}
	}
	if d := learning.Decide(request(HTTP, api, "198.51.100.1", 443, tlsAPI, &HTTPRequest{Method: "GET", Target: "/a/../b"})); d.Path != "/b" || d.Host != "api.test" {
		t.Errorf("the request is sent as %q for %q", d.Path, d.Host)
	}
	enforcing := Compile(Stack{Inspect: inspect, Layers: layers})
	if d := enforcing.Decide(request(Hello, api, "198.51.100.1", 443, tlsAPI, nil)); d.Verdict != Deny {
		t.Errorf("hosts to look into opened a host in enforcement: %s", d.Reason)
	}
}
