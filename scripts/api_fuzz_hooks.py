"""What makes some of the fuzzer's calls meet what is there: schemathesis makes up ids and names, which nobody has.

SPORE_FUZZ_SANDBOX and SPORE_FUZZ_IMAGE name a sandbox and an image of the daemon; without them no names are changed. With
SPORE_FUZZ_EXPENDABLE whatever the daemon has may be lost, and what is used up is made again, on SPORE_SOCKET.
"""

import http.client
import json
import os
import random
import socket

import schemathesis

SANDBOX = os.environ.get("SPORE_FUZZ_SANDBOX")
IMAGE = os.environ.get("SPORE_FUZZ_IMAGE")
EXPENDABLE = bool(os.environ.get("SPORE_FUZZ_EXPENDABLE"))
# The same run after run, as far as the calls are.
CHOICE = random.Random(5)


def _often() -> bool:
    return CHOICE.random() < 0.7


class _Daemon(http.client.HTTPConnection):
    def __init__(self):
        super().__init__("spore")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        # A daemon that hangs is a finding.
        self.sock.settimeout(300)
        self.sock.connect(os.environ["SPORE_SOCKET"])


def _ask(method, path, body=None):
    connection = _Daemon()
    connection.request(method, path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {text!r}")
    return json.loads(text) if text else None


class _Expendable:
    """Ids of what may be lost, made for it: what earlier calls left may end by itself at any moment."""

    def __init__(self):
        # Of this new ones are made, also when the image is gone.
        self.source = _ask("POST", f"/v1/sandboxes/{SANDBOX}/checkpoints", {})["id"]
        self.there = {"sandbox": [], "checkpoint": [], "image": [IMAGE], "build": []}
        self.floor_mb = 512

    def _make(self, kind):
        """The id of a new one, or nothing for an image: that would be a boot, and the one that is there is enough."""
        if kind == "sandbox":
            return _ask("POST", "/v1/sandboxes", {"checkpoint": self.source})["id"]
        if kind == "checkpoint":
            # Of one that nobody has paused.
            self.there["sandbox"].append(self._make("sandbox"))
            return _ask("POST", f"/v1/sandboxes/{self.one('sandbox')}/checkpoints", {})["id"]
        if kind == "build":
            # Nobody asked for this floor yet: it would boot for a while.
            self.floor_mb += 8
            manifest = {"base": "busybox", "builderMemoryMB": 512, "runtimeMemoryMB": self.floor_mb, "steps": []}
            return _ask("POST", "/v1/images?async=1", {"manifest": manifest, "network": "none"})["buildId"]
        return None

    def one(self, kind):
        there = self.there[kind]
        if not there and (made := self._make(kind)):
            there.append(made)
        return there[-1] if there else None

    def is_gone(self, kind, name):
        if name in self.there[kind]:
            self.there[kind].remove(name)


KINDS = {"id": "sandbox", "checkpoint": "checkpoint", "image": "image", "build": "build"}
expendable = _Expendable() if EXPENDABLE else None


# What is asked for instead of so much more that the host has it all the same: a boot, growth, a fork each.
QUICK = {"finalizeMemoryMB": (512, 65536), "memoryMB": (512, 16384), "cpus": (1, 16), "count": (1, 64)}


def _quick(name, value):
    quick, most = QUICK.get(name, (0, 0))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return quick if is_number and quick < value <= most else value


def _path_parameters(path, parameters):
    if not parameters or not _often():
        return parameters
    if expendable:
        (name,) = parameters
        return {name: expendable.one(KINDS[name]) or parameters[name]}
    if SANDBOX and path.startswith("/v1/sandboxes/{id}"):
        return {**parameters, "id": SANDBOX}
    if IMAGE and path.startswith("/v1/images/{"):
        return {name: IMAGE for name in parameters}
    return parameters


def _body(path, body):
    if IMAGE and path == "/v1/sandboxes" and _often():
        body = {name: value for name, value in body.items() if name != "checkpoint"}
        body = {**body, "image": IMAGE}
    # What may be asked for and takes minutes where guests are interpreted. What may not goes through.
    body = {name: _quick(name, value) for name, value in body.items()}
    # It would end before all others have met it.
    if path == "/v1/sandboxes/{id}":
        return {name: value for name, value in body.items() if "imeoutSeconds" not in name}
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    """Here, and not where values are made: so it is for every phase, and the tool looks again at what is right or wrong
    of what is sent."""
    path = context.operation.path
    case.path_parameters = _path_parameters(path, case.path_parameters)
    if isinstance(case.body, dict):
        case.body = _body(path, case.body)
    # A file that is there to be removed.
    if expendable and case.method == "DELETE" and path.endswith("/files") and "path" in (case.query or {}) and _often():
        case.query = {**case.query, "path": "/srv/expendable"}
        try:
            _ask("PUT", f"/v1/sandboxes/{case.path_parameters['id']}/files?path=/srv/expendable", "")
        except (RuntimeError, OSError, http.client.HTTPException):
            pass  # Its sandbox is made up, or paused.


@schemathesis.hook
def after_call(context, case, response):
    if not expendable:
        return
    if response.status_code == 404 and not context.operation.path.endswith("/files"):
        _gone(case)
    if response.status_code >= 300:
        return
    # For the script: a call that met nothing has tried nothing.
    with open("met", "a", encoding="utf-8") as met:
        print(context.operation.label, file=met)
    if case.method == "DELETE" and not context.operation.path.endswith("/files"):
        _gone(case)


def _gone(case):
    ((name, value),) = case.path_parameters.items()
    expendable.is_gone(KINDS[name], value)
