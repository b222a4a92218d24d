"""A daemon in this process, as docs/api.md says: its sandboxes are directories of this machine, its commands run here.

It is strict where the daemon is: a request with a field that the daemon's source does not have is refused. It can be
told to hang up (`faults`), and remembers what it was asked (`requests`).
"""

from __future__ import annotations

import base64
import json
import shutil
import socketserver
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, cast
from urllib.parse import parse_qs, unquote, urlsplit

from fake_exec import NOTHING, STRUCTS, ImageState, RefusalError, ServerSocket, build_step, run


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self, struct: str) -> dict[str, Any]:
        """The body, which has only fields of this struct."""
        try:
            found = json.loads(self.body)
        except ValueError as error:
            raise RefusalError(400, "invalid_request", f"the body is no JSON: {error}") from error
        unknown = found.keys() - STRUCTS[struct].keys()
        if unknown:
            raise RefusalError(400, "invalid_request", f"unknown fields: {sorted(unknown)}")
        assert isinstance(found, dict)
        return found


@dataclass
class Fake:
    """A daemon's state, and where it listens."""

    directory: Path
    requests: list[Request] = field(default_factory=list)
    #: What happens to the next requests: `before`: the connection ends unheard; `after`: it ends unanswered;
    #: `hang`: no answer comes before `release`; `garble`: the answer is no HTTP. Empty: all goes well.
    faults: deque[str] = field(default_factory=deque)
    release: threading.Event = field(default_factory=threading.Event)
    #: Commands that a client left, and that were killed for it.
    killed: int = 0
    controls: list[dict[str, Any]] = field(default_factory=list)
    #: Server-sent events of the host: sent once, a connection each list.
    events: deque[list[dict[str, Any]]] = field(default_factory=deque)
    sandboxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, ImageState] = field(default_factory=dict)
    draining: bool = False
    once: dict[str, tuple[str, int, Any]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def socket(self) -> str:
        return str(self.directory / "fake.sock")

    def start(self) -> None:
        fake = self

        class Bound(Handler):
            daemon = fake

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(self.socket, Bound)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        Path(self.socket).unlink()

    def asked(self, method: str, path: str) -> list[Request]:
        """Those requests that were so."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def new_id(self, kind: str) -> str:
        return f"{kind}{len(self.requests)}-{time.monotonic_ns() % 10**9}"

    def sandbox(self, id: str) -> dict[str, Any]:
        if id not in self.sandboxes:
            raise RefusalError(404, "not_found", f"no sandbox {id}")
        return self.sandboxes[id]

    def root(self, id: str) -> Path:
        self.sandbox(id)
        return self.directory / id

    def make_sandbox(self, asked: dict[str, Any], origin: str, **more: Any) -> dict[str, Any]:
        id = self.new_id("s")
        source = self.directory / str(more.get("parent") or more.get("checkpoint") or more.get("image"))
        shutil.copytree(source, self.directory / id)
        self.states[id] = self.states.get(source.name, NOTHING)
        memory = asked.get("memoryMB") or 1024
        if memory > 16384:
            raise RefusalError(503, "insufficient_capacity", "the host has no room", largestFitMB=9000)
        expires = {"expiresAt": 1700000000 + asked["timeoutSeconds"]} if asked.get("timeoutSeconds") else {}
        if asked.get("idleTimeoutSeconds"):
            expires["idleTimeoutSeconds"] = asked["idleTimeoutSeconds"]
        made = {
            "id": id,
            "state": "running",
            "origin": origin,
            "memory": {"floorMB": 1024, "requestedMB": memory, "grantedMB": max(memory, 1024), "maxMB": 16384},
            "cpus": asked.get("cpus") or 1,
            "network": {"policy": asked.get("network") or "none"},
            "metadata": asked.get("metadata") or {},
            "createdAt": 1700000000,
            "lastUsedAt": 1700000000,
            "times": {"releasedUs": 1, "wokeUs": 2, "readyUs": 3},
            **expires,
            **more,
        }
        self.sandboxes[id] = made
        made_with = dict(made)
        if asked.get("exec") is not None:
            made_with["exec"] = run(asked["exec"], self.root(id), self.states[id])
        return made_with


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    daemon: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        target = urlsplit(self.path)
        query = {key: value[0] for key, value in parse_qs(target.query, keep_blank_values=True).items()}
        request = Request(self.command, target.path, query, dict(self.headers), self.rfile.read(length))
        with self.daemon.lock:
            self.daemon.requests.append(request)
            fault = self.daemon.faults.popleft() if self.daemon.faults else ""
        if fault == "hang":
            self.daemon.release.wait()
        if fault == "garble":
            self.wfile.write(b"SSH-2.0\r\n\r\n")
        if fault in ("before", "hang", "garble"):
            self.close_connection = True
            return
        self.silent = fault == "after"
        try:
            self.route(request)
        except RefusalError as refusal:
            self.send(refusal.status, {"error": refusal.body})
        if self.silent:
            self.close_connection = True

    def send(self, status: int, body: Any = None, kind: str = "application/json") -> None:
        if self.silent:
            return
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if body is not None:
            self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, messages: Any, named: bool = True) -> None:
        """Send server-sent events, each cut in two."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for message in messages:
            lines = f"event: {message['type']}\n" if named else f"id: {message['id']}\n"
            data = f"{lines}data: {json.dumps(message)}\n\n".encode()
            for piece in (data[:9], data[9:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def once(self, request: Request, status: int, make: Callable[[], Any]) -> None:
        """Make something once a key."""
        key = request.headers.get("Idempotency-Key")
        with self.daemon.lock:
            if key is None:
                raise RefusalError(400, "invalid_request", "the package always sends a key")
            call = f"{request.method} {request.path} {request.body!r}"
            if key not in self.daemon.once:
                self.daemon.once[key] = (call, status, make())
            before, status, body = self.daemon.once[key]
            if before != call:
                raise RefusalError(409, "conflict", "another call had this key")
        self.send(status, body)

    def route(self, request: Request) -> None:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        if request.path in ("/healthz", "/metrics"):
            self.send(200, b"ok" if request.path == "/healthz" else b"spore_sandboxes 1\n", "text/plain")
            return
        name = "_".join([request.method.lower(), *parts[1:2], *(["one"] if len(parts) > 2 else []), *parts[3:]])
        handler: Optional[Callable[..., None]] = getattr(self, name.replace(".", "_"), None)
        if parts[0] != "v1" or handler is None:
            raise RefusalError(404, "no_such_call", f"no {request.method} {request.path}")
        handler(request, *parts[2:3])

    # Images.

    def post_images(self, request: Request) -> None:
        asked = request.json("BuildRequest")
        manifest = asked["manifest"]
        if manifest["base"] not in ("debian", "busybox"):
            raise RefusalError(400, "unknown_base", f"no base {manifest['base']}")
        if request.query.get("async"):
            self.once(request, 202, lambda: {"buildId": "b1"})
            return
        self.stream(self.build(manifest))

    def build(self, manifest: dict[str, Any]) -> Any:
        from spore._core.canonical import content_hash

        id = f"i{content_hash(manifest)[:12]}"
        root, state = self.daemon.directory / id, NOTHING
        root.mkdir(exist_ok=True)
        yield {"type": "build", "buildId": "b1"}
        yield {"type": "phase", "phase": "booting", "message": "4096 MiB"}
        for number, step in enumerate(manifest["steps"]):
            words = json.dumps(step["args"], ensure_ascii=False)
            label = f"{step['type']} {words:.40}"
            yield {"type": "stepStarted", "step": number, "of": len(manifest["steps"]), "label": label}
            yield {"type": "output", "text": "first li"}
            yield {"type": "output", "text": "ne\nsecond\r\nthe rest"}
            if "wait for release" in words:
                self.daemon.release.wait(10)
            if "lose the stream" in words:
                self.wfile.flush()
                self.connection.shutdown(2)
                return
            for code in ("build_failed", "build_oom", "build_disk_full"):
                if code in words:
                    yield {"type": "error", "error": {"code": code, "message": "step 0", "details": {"step": number}}}
                    return
            state = build_step(step, root, state)
            yield {"type": "stepDone", "step": number, "tookMs": 1500}
            yield {"type": "somethingNew", "x": 1}
        image = {
            "id": id,
            "names": [manifest["name"]] if "name" in manifest else [],
            "contentHash": content_hash(manifest),
            "baseDigest": "00",
            "createdAt": 1700000000,
            "sizeBytes": 1,
            "builderMemoryMB": manifest.get("builderMemoryMB", 4096),
            "checkpoints": [{"id": "c0", "floorMB": 1024, "cpus": 1}],
        }
        self.daemon.images[id], self.daemon.states[id] = image, state
        yield {"type": "image", "image": image}

    def image(self, name: str) -> dict[str, Any]:
        for image in self.daemon.images.values():
            if name == image["id"] or name in image["names"]:
                return image
        raise RefusalError(404, "not_found", f"no image {name}")

    def get_images(self, request: Request) -> None:
        self.send(200, {"images": list(self.daemon.images.values())})

    def get_images_one(self, request: Request, name: str) -> None:
        self.send(200, self.image(name))

    def delete_images_one(self, request: Request, name: str) -> None:
        del self.daemon.images[self.image(name)["id"]]
        self.send(204)

    def get_builds_one(self, request: Request, id: str) -> None:
        error = {"code": "build_oom", "message": "step 0", "details": {}}
        self.send(200, {"id": id, "state": "failed", "startedAt": 1700000000, "tookMs": 5, "error": error})

    def get_builds_one_logs(self, request: Request, id: str) -> None:
        self.stream(self.build({"base": "busybox", "steps": []}))

    def delete_builds_one(self, request: Request, id: str) -> None:
        self.send(204)

    # Sandboxes.

    def post_sandboxes(self, request: Request) -> None:
        asked = request.json("CreateSandbox")
        if ("image" in asked) == ("checkpoint" in asked):
            raise RefusalError(400, "invalid_request", "either image or checkpoint")
        source = {}
        if "image" in asked:
            source["image"] = self.image(asked["image"])["id"]
        else:
            source["checkpoint"] = self.checkpoint(asked["checkpoint"])["id"]

        def make() -> dict[str, Any]:
            if "count" not in asked:
                return self.daemon.make_sandbox(asked, "shell", **source)
            made = [self.daemon.make_sandbox(asked, "fork", **source) for _ in range(min(asked["count"], 3))]
            failed = [{"code": "insufficient_capacity", "message": "no room"}] * (asked["count"] - len(made))
            if failed and not asked.get("partial"):
                raise RefusalError(503, "insufficient_capacity", "no room for all")
            return {"sandboxes": made, **({"errors": failed} if failed else {})}

        self.once(request, 201, make)

    def get_sandboxes(self, request: Request) -> None:
        wanted = {key[9:]: value for key, value in request.query.items()}
        found = [box for box in self.daemon.sandboxes.values() if wanted.items() <= box["metadata"].items()]
        self.send(200, {"sandboxes": found[::-1]})

    def get_sandboxes_one(self, request: Request, id: str) -> None:
        found = dict(self.daemon.sandbox(id))
        if request.query.get("usage"):
            found["usage"] = dict.fromkeys(STRUCTS["Usage"], 7)
        self.send(200, found)

    def patch_sandboxes_one(self, request: Request, id: str) -> None:
        box, asked = self.daemon.sandbox(id), request.json("SandboxUpdate")
        if "memoryMB" in asked:
            if asked["memoryMB"] > box["memory"]["maxMB"]:
                raise RefusalError(400, "above_maximum", "more than it can have")
            box["memory"].update(requestedMB=asked["memoryMB"], grantedMB=max(asked["memoryMB"], 1024))
        if "timeoutSeconds" in asked:
            box["expiresAt"] = 1700000000 + asked["timeoutSeconds"] if asked["timeoutSeconds"] else None
        if "idleTimeoutSeconds" in asked:
            box["idleTimeoutSeconds"] = asked["idleTimeoutSeconds"] or None
        if "metadata" in asked:
            box["metadata"] = asked["metadata"]
        self.send(200, box)

    def delete_sandboxes_one(self, request: Request, id: str) -> None:
        shutil.rmtree(self.daemon.root(id))
        del self.daemon.sandboxes[id]
        self.send(204)

    def post_sandboxes_one_exec(self, request: Request, id: str) -> None:
        self.send(200, run(request.json("ExecRequest"), self.daemon.root(id), self.daemon.states[id]))

    def set_state(self, id: str, state: str) -> None:
        self.daemon.sandbox(id)["state"] = state
        self.send(200, self.daemon.sandbox(id))

    def post_sandboxes_one_pause(self, request: Request, id: str) -> None:
        self.set_state(id, "paused")

    def post_sandboxes_one_resume(self, request: Request, id: str) -> None:
        self.set_state(id, "running")

    def get_sandboxes_one_logs(self, request: Request, id: str) -> None:
        self.daemon.sandbox(id)
        self.send(200, b"console \xff\n", "text/plain")

    def post_sandboxes_one_fork(self, request: Request, id: str) -> None:
        parent, asked = self.daemon.sandbox(id), request.json("ForkRequest")

        def make() -> dict[str, Any]:
            made = [self.daemon.make_sandbox(asked, "liveFork", parent=parent["id"]) for _ in range(asked["count"])]
            return {"sandboxes": made, "pausedUs": 900}

        self.once(request, 201, make)

    # Files.

    def local(self, request: Request, id: str) -> Path:
        return self.daemon.root(id) / request.query["path"].lstrip("/")

    def get_sandboxes_one_files(self, request: Request, id: str) -> None:
        try:
            self.send(200, self.local(request, id).read_bytes(), "application/octet-stream")
        except OSError as error:
            raise RefusalError(422, "guest_refused", str(error)) from error

    def put_sandboxes_one_files(self, request: Request, id: str) -> None:
        path = self.local(request, id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request.body)
        path.chmod(int(request.query.get("mode", "644"), 8))
        self.send(200, {"path": request.query["path"], "sizeBytes": len(request.body)})

    def delete_sandboxes_one_files(self, request: Request, id: str) -> None:
        path = self.local(request, id)
        try:
            shutil.rmtree(path) if request.query.get("recursive") else path.unlink()
        except OSError as error:
            raise RefusalError(422, "guest_refused", str(error)) from error
        self.send(204)

    def get_sandboxes_one_ls(self, request: Request, id: str) -> None:
        entries = []
        for path in sorted(self.local(request, id).iterdir()):
            found = path.stat()
            kind = "directory" if path.is_dir() else "file"
            mode = f"{found.st_mode & 0o7777:04o}"
            size = {"sizeBytes": found.st_size, "mode": mode, "modifiedAt": int(found.st_mtime)}
            entries.append({"name": path.name, "kind": kind, **size})
        self.send(200, {"entries": entries})

    def post_sandboxes_one_mkdir(self, request: Request, id: str) -> None:
        self.local(request, id).mkdir(mode=int(request.query.get("mode", "755"), 8), parents=True, exist_ok=True)
        self.send(204)

    # Checkpoints.

    def checkpoint(self, name: str) -> dict[str, Any]:
        for found in self.daemon.checkpoints.values():
            if name in (found["id"], found.get("name")):
                return found
        raise RefusalError(404, "not_found", f"no checkpoint {name}")

    def post_sandboxes_one_checkpoints(self, request: Request, id: str) -> None:
        self.daemon.sandbox(id)
        asked = request.json("CheckpointRequest")

        def make() -> dict[str, Any]:
            if any(found.get("name") == asked.get("name") for found in self.daemon.checkpoints.values() if asked):
                raise RefusalError(409, "conflict", "the name is taken")
            made = {
                "id": self.daemon.new_id("c"),
                **asked,
                "kind": "sandbox",
                "floorMB": asked.pop("finalizeMemoryMB", 1024),
                "maxMemoryMB": 16384,
                "cpus": 1,
                "memoryBytes": 1,
                "diskMB": 4096,
                "createdAt": 1700000000,
            }
            self.daemon.checkpoints[made["id"]] = made
            shutil.copytree(self.daemon.root(id), self.daemon.directory / made["id"])
            return made

        self.once(request, 201, make)

    def get_checkpoints(self, request: Request) -> None:
        self.send(200, {"checkpoints": list(self.daemon.checkpoints.values())})

    def get_checkpoints_one(self, request: Request, name: str) -> None:
        self.send(200, self.checkpoint(name))

    def delete_checkpoints_one(self, request: Request, name: str) -> None:
        del self.daemon.checkpoints[self.checkpoint(name)["id"]]
        self.send(204)

    # The host.

    def get_host(self, request: Request) -> None:
        numbers = ("cpus", "diskTotalBytes", "diskFreeBytes", "sandboxes", "maxSandboxes", "builds", "maxBuilds")
        self.send(
            200,
            {
                **dict.fromkeys((*numbers, "execs", "maxExecs", "templates", "shells", "startedAt"), 1),
                "draining": self.daemon.draining,
                "memory": {**dict.fromkeys(STRUCTS["Capacity"], 9000), "overcommit": 1},
                "load": [0.5, 1, 2.0],
                "dataDir": "/data",
                "images": list(self.daemon.images),
                "checkpoints": [],
                "kvm": "software",
                "confinement": [],
                "versions": {"spore": "0", "api": "1", "kernel": "6"},
            },
        )

    def post_host_one(self, request: Request, what: str) -> None:
        assert what == "drain"
        self.daemon.draining = request.json("Drain")["draining"]
        self.get_host(request)

    def get_events(self, request: Request) -> None:
        if not self.silent:
            self.stream(self.daemon.events.popleft() if self.daemon.events else [], named=False)

    def get_openapi_json(self, request: Request) -> None:
        self.send(200, {"openapi": "3.1.0"})

    # A command's stream.

    def get_sandboxes_one_exec(self, request: Request, id: str) -> None:
        root = self.daemon.root(id)
        key = request.headers["Sec-WebSocket-Key"].encode()
        accept = base64.b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
        self.send_response_only(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept.decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        ServerSocket(self.daemon, cast(BinaryIO, self.rfile), cast(BinaryIO, self.wfile), root).serve()
