package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"weir/redirect"
)

// attached is how many attachments' listeners TestListenersPassToTheNextProgram
// passes on.
const attached = 100

// TestListenersPassToTheNextProgram runs itself as a daemon whose threads wait
// for the network, and has that become the next one.
func TestListenersPassToTheNextProgram(t *testing.T) {
	switch {
	case os.Getenv("WEIR_TEST_HANDOVER") == "":
		for range 20 {
			cmd := exec.Command(os.Args[0], "-test.run=^TestListenersPassToTheNextProgram$")
			cmd.Env = append(os.Environ(), "WEIR_TEST_HANDOVER=1")
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "all taken over") {
				t.Fatalf("%v\n%.2000s", err, out)
			}
		}
	case !slices.ContainsFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, handedOver) }):
		sockets := listening(t)
		for range 4 {
			go pingPong(t)
		}
		t.Fatal(become(sockets))
	default:
		got := inheritedSockets(slog.Default())
		for netns, s := range got {
			for what, f := range socketFiles(s) {
				if l, err := net.FileListener(f); err == nil {
					l.Close()
				} else if p, err := net.FilePacketConn(f); err == nil {
					p.Close()
				} else {
					t.Errorf("%s of %s is no socket: %v", what, netns, err)
				}
			}
		}
		if len(got) == attached && !t.Failed() {
			fmt.Println("all taken over")
		}
	}
}

// listening are the sockets of as many attachments.
func listening(t *testing.T) map[string]*redirect.Sockets {
	t.Helper()
	all := map[string]*redirect.Sockets{}
	for n := range attached {
		files := map[string]*os.File{}
		for _, what := range []string{tcpSocket, dnsTCPSocket, dnsUDPSocket, udpSocket} {
			var err error
			if strings.HasSuffix(what, "tcp") {
				var l net.Listener
				if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
					files[what], err = l.(*net.TCPListener).File()
					l.Close()
				}
			} else {
				var p net.PacketConn
				if p, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
					files[what], err = p.(*net.UDPConn).File()
					p.Close()
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		all[fmt.Sprintf("4:%d", n)] = &redirect.Sockets{TCP: files[tcpSocket], DNSTCP: files[dnsTCPSocket], DNSUDP: files[dnsUDPSocket], UDP: files[udpSocket]}
	}
	return all
}

// pingPong sends a byte to and fro over a connection until it breaks.
func pingPong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return
	}
	bounce := func(c net.Conn, err error) {
		for b := []byte{0}; err == nil; {
			if _, err = c.Write(b); err == nil {
				_, err = c.Read(b)
			}
		}
	}
	go func() { bounce(l.Accept()) }()
	bounce(net.Dial("tcp", l.Addr().String()))
}
