# Makes the requests listed as JSON on the input, each on a connection of its
# own, and prints for each its status, or "failed" when there was no answer.
import json, socket, sys, requests

for a in json.load(sys.stdin):
    try:
        if "connect" in a:
            host, port = a["connect"]
            # Weir takes every connection, to see where it wants to go: what
            # counts is an answer.
            with socket.create_connection((host, port), 5) as s:
                s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                status = "answered" if s.recv(1) else "failed"
        elif "resolve" in a:
            socket.getaddrinfo(a["resolve"], None)
            status = "resolved"
        else:
            r = requests.request(a.get("method", "GET"), a["url"], timeout=5, allow_redirects=False, verify=a.get("verify", True),
                                 data=a.get("data"), json=a.get("json"), headers=a.get("headers"))
            status = "refused" if "X-Weir-Event" in r.headers else str(r.status_code)
    except (OSError, requests.RequestException) as e:
        status = "failed"
    print(status, flush=True)
