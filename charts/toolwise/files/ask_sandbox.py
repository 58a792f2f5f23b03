"""Asks the sandbox for its isolation, runs a call, and sees that code there reaches nothing.

Arguments: the server, the lowest isolation accepted, and `host:port` of what must not be reached.
"""

import json
import socket
import sys
import urllib.request
from urllib.parse import urlsplit

LEVELS = ["none", "bubblewrap", "gvisor"]
ATTEMPT = """
import socket
try:
    socket.create_connection({address!r}, 3)
    print("reached")
except OSError:
    print("out of reach")
"""


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def printed(code):
    return ask("POST", f"/sessions/{session}/calls", {"code": code})["text"].strip()


server, lowest, *targets = sys.argv[1:]
# One of its addresses: a session stays in the pod that made it.
name = urlsplit(server).hostname
server = server.replace(name, socket.gethostbyname(name))
isolation = ask("GET", "/health")["isolation"]
print("isolation:", isolation)
if LEVELS.index(isolation) < LEVELS.index(lowest):
    sys.exit(f"that is weaker than {lowest}")
session = ask("POST", "/sessions", {})["id"]
if printed("print(6 * 7)") != "42":
    sys.exit("a call does not give its result")
for target in targets:
    host, port = target.rsplit(":", 1)
    # By address: the sandbox looks no names up.
    said = printed(ATTEMPT.format(address=(socket.gethostbyname(host), int(port))))
    print(f"{target}: {said}")
    if said != "out of reach":
        sys.exit(f"code in the sandbox must not reach {target}")
ask("DELETE", f"/sessions/{session}")
