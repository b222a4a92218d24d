"""Commands of the fake daemon: run on this machine, called or over a WebSocket."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import rust_types

STRUCTS = rust_types.structs()


class Daemon(Protocol):
    """What a daemon has heard."""

    killed: int
    controls: list[dict[str, Any]]


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, **({"details": details} if details else {})}


@dataclass(frozen=True)
class ImageState:
    """What an image gives to every command."""

    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"


NOTHING = ImageState()


def build_step(step: dict[str, Any], root: Path, image: ImageState) -> ImageState:
    """Do what a step says, below a directory."""
    args = step["args"]
    if step["type"] == "env":
        return replace(image, env={**image.env, **args["vars"]})
    if step["type"] == "workdir":
        (root / args["path"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        return replace(image, workdir=args["path"])
    if step["type"] == "add_file":
        path = root / args["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(args["content"]))
        path.chmod(int(args.get("mode", "0644"), 8))
    if step["type"] == "run":
        for command in args["commands"]:
            if command.startswith("./"):
                assert run({"cmd": ["/bin/sh", "-c", command]}, root, image)["exitCode"] == 0
    return image


def run(request: dict[str, Any], root: Path, image: ImageState = NOTHING) -> dict[str, Any]:
    """Run a command on this machine, as an `ExecResult`."""
    unknown = request.keys() - STRUCTS["ExecRequest"].keys()
    if unknown:
        raise RefusalError(400, "invalid_request", f"unknown fields: {sorted(unknown)}")
    process = spawn(request, root, image)
    timed_out = False
    try:
        given = base64.b64decode(request["stdin"]) if "stdin" in request else b""
        out, err = process.communicate(given, timeout=request.get("timeoutSeconds") or 60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        timed_out = True
    return ended(process.returncode, timed_out, out, err)


def spawn(request: dict[str, Any], root: Path, image: ImageState = NOTHING) -> subprocess.Popen[bytes]:
    command = request["cmd"]
    directory = root / (request.get("cwd") or image.workdir).lstrip("/")
    if not directory.is_dir():
        raise RefusalError(422, "guest_refused", f"working directory {request['cwd']!r}: No such file or directory")
    if "/" in command[0] and not (directory / command[0]).exists():
        command = ["/bin/sh", "-c", 'echo "spore: $0: no such file" >&2; exit 127', command[0]]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # With SPORE_TEST_RUN, by which CI finds what a test run leaves.
        env={
            **{name: os.environ[name] for name in ("PATH", "SPORE_TEST_RUN") if name in os.environ},
            **image.env,
            **request.get("env", {}),
        },
        cwd=directory,
        start_new_session=True,
    )


def ended(code: int, timed_out: bool, out: bytes, err: bytes) -> dict[str, Any]:
    killed = {"signal": -code} if code < 0 else {}
    return {
        "exitCode": 124 if timed_out else 128 - code if code < 0 else code,
        **killed,
        "timedOut": timed_out,
        "oomKills": 0,
        "tookMs": 1,
        "maxRssBytes": 4096,
        "stdout": base64.b64encode(out).decode(),
        "stderr": base64.b64encode(err).decode(),
        "truncated": False,
    }


class ServerSocket:
    """The other side of a WebSocket, and the command in it."""

    def __init__(self, daemon: Daemon, reader: BinaryIO, writer: BinaryIO, root: Path) -> None:
        self.daemon, self.reader, self.writer, self.root = daemon, reader, writer, root
        self.sending = threading.Lock()

    def send(self, opcode: int, payload: bytes, final: bool = True) -> None:
        head = bytes([(0x80 if final else 0) | opcode])
        size = len(payload)
        head += (
            bytes([size]) if size < 126 else struct.pack("!BH" if size < 65536 else "!BQ", 126 + (size > 65535), size)
        )
        with self.sending:
            self.writer.write(head + payload)

    def receive(self) -> tuple[int, bytes]:
        read = self.reader.read
        head = read(2)
        if len(head) < 2:
            raise ConnectionResetError
        assert head[0] & 0x80, "the package sends whole messages"
        assert head[1] & 0x80, "a client masks"
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(read(2 if size == 126 else 8), "big")
        mask, payload = read(4), read(size)
        return head[0] & 0x0F, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    def report(self, kind: str, body: dict[str, Any]) -> None:
        text = json.dumps({"type": kind, **body}).encode()
        # In fragments, with a ping between them.
        self.send(1, text[:5], final=False)
        self.send(9, b"ping")
        self.send(0, text[5:])

    def serve(self) -> None:
        request = json.loads(self.receive()[1])
        unknown = request.keys() - STRUCTS["ExecRequest"].keys()
        if unknown:
            self.report("error", {"code": "invalid_request", "message": f"unknown fields: {sorted(unknown)}"})
            return
        if request["cmd"] == ["break off"]:
            return
        if request["cmd"] == ["end early"]:
            # With input that nobody has read, which is an error to whoever sends more.
            self.report("exit", ended(5, False, b"", b""))
            return
        if request["cmd"] == ["speak in tongues"]:
            self.send(2, b"\7?")
            return
        try:
            process = spawn(request, self.root)
        except RefusalError as refusal:
            self.report("error", refusal.body)
            return
        pumps = [
            threading.Thread(target=self.pump, args=(mark, pipe))
            for mark, pipe in ((b"\1", process.stdout), (b"\2", process.stderr))
        ]
        for pump in pumps:
            pump.start()
        feeding = threading.Thread(target=self.feed, args=(process,))
        feeding.start()
        for pump in pumps:
            pump.join()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe
            pipe.close()
        try:
            self.report("exit", {**ended(process.returncode, False, b"", b"")})
            self.send(8, struct.pack("!H", 1000))
        except OSError:
            pass
        feeding.join()

    def pump(self, mark: bytes, pipe: Any) -> None:
        while data := os.read(pipe.fileno(), 1000):
            try:
                self.send(2, mark + data)
            except OSError:
                return

    def feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        try:
            while True:
                opcode, payload = self.receive()
                if opcode == 8:
                    break
                if opcode == 2:
                    with suppress(BrokenPipeError):
                        process.stdin.write(payload)
                        process.stdin.flush()
                if opcode == 1:
                    control = json.loads(payload)
                    self.daemon.controls.append(control)
                    if control["type"] == "stdinEnd":
                        process.stdin.close()
                    if control["type"] == "signal":
                        os.killpg(process.pid, control["signal"])
        except (OSError, ValueError):
            pass
        finally:
            if process.poll() is None:
                self.daemon.killed += 1
                os.killpg(process.pid, signal.SIGKILL)
            if not process.stdin.closed:
                with suppress(BrokenPipeError):
                    process.stdin.close()
