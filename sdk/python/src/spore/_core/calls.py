"""Every call of the daemon: arguments as the package's users give them, to a `Call`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

from ..errors import BadAnswerError, SporeError, from_body
from ..models import (
    Build,
    BuildNetworkSpec,
    CheckpointInfo,
    DirEntry,
    Event,
    ExecResult,
    FileInfo,
    HostInfo,
    ImageInfo,
    NetworkSpec,
    SandboxInfo,
    Usage,
)
from .call import (
    JSON_HEADERS,
    Call,
    Reply,
    json_body,
    once_headers,
    read_as,
    read_list,
    read_nothing,
    read_text,
    segment,
)
from .command import Command, exec_request
from .decode import decode

#: A file's permission bits: a number (`0o755`) or octal digits (`"0755"`).
Mode = Union[int, str]


@dataclass(frozen=True)
class Made:
    """A sandbox that was made, and what its first command came to."""

    info: SandboxInfo
    exec: Optional[ExecResult] = None


@dataclass(frozen=True)
class MadeSeveral:
    """Sandboxes that were made at once."""

    made: list[Made]
    errors: list[SporeError] = field(default_factory=list)
    paused_us: Optional[int] = None


def mode_text(mode: Mode) -> str:
    """Write a mode as octal digits.

    Raises:
        ValueError: The number has more than permission bits.
    """
    if isinstance(mode, str):
        return mode
    if isinstance(mode, bool) or not 0 <= mode <= 0o7777:
        raise ValueError(f"{mode!r} is no mode; permission bits are 0 to 0o7777")
    return f"{mode:04o}"


# Images and builds.


def _build_body(
    manifest: Mapping[str, Any], no_cache: bool, step_timeout_seconds: Optional[int], network: BuildNetworkSpec
) -> bytes:
    return json_body(
        {
            "manifest": manifest,
            "noCache": no_cache or None,
            "stepTimeoutSeconds": step_timeout_seconds,
            "network": None if network == "auto" else _network(network),
        }
    )


def build(
    manifest: Mapping[str, Any],
    *,
    no_cache: bool,
    step_timeout_seconds: Optional[int],
    network: BuildNetworkSpec,
) -> Call[None]:
    """Build an image; the answer is a stream."""
    body = _build_body(manifest, no_cache, step_timeout_seconds, network)
    return Call("POST", "/v1/images", read_nothing, body=body, headers=JSON_HEADERS, slow=True)


def start_build(
    manifest: Mapping[str, Any],
    *,
    no_cache: bool,
    step_timeout_seconds: Optional[int],
    network: BuildNetworkSpec,
) -> Call[str]:
    """Begin a build that goes on by itself."""
    body = _build_body(manifest, no_cache, step_timeout_seconds, network)
    return Call(
        "POST",
        "/v1/images",
        _read_build_id,
        query={"async": "1"},
        body=body,
        headers=once_headers(),
    )


def _read_build_id(reply: Reply) -> str:
    found = reply.json()
    if not isinstance(found, dict) or not isinstance(found.get("buildId"), str):
        raise BadAnswerError("buildId is missing in the answer")
    return str(found["buildId"])


def list_images() -> Call[list[ImageInfo]]:
    """List images."""
    return Call("GET", "/v1/images", read_list(ImageInfo, "images"))


def get_image(image: str) -> Call[ImageInfo]:
    """Look at an image."""
    return Call("GET", f"/v1/images/{segment(image)}", read_as(ImageInfo))


def delete_image(image: str) -> Call[None]:
    """Delete an image."""
    return Call("DELETE", f"/v1/images/{segment(image)}", read_nothing)


def get_build(build_id: str) -> Call[Build]:
    """Look at a build."""
    return Call("GET", f"/v1/builds/{segment(build_id)}", read_as(Build))


def follow_build(build_id: str) -> Call[None]:
    """Follow a build; the answer is a stream."""
    return Call("GET", f"/v1/builds/{segment(build_id)}/logs", read_nothing, slow=True)


def cancel_build(build_id: str) -> Call[None]:
    """Cancel a build."""
    return Call("DELETE", f"/v1/builds/{segment(build_id)}", read_nothing)


# Sandboxes.


def create_sandbox(
    *,
    image: Optional[str] = None,
    checkpoint: Optional[str] = None,
    memory_mb: Optional[int],
    cpus: Optional[int],
    disk_mb: Optional[int],
    env: Optional[Mapping[str, str]],
    metadata: Optional[Mapping[str, str]],
    timeout_seconds: Optional[int],
    idle_timeout_seconds: Optional[int] = None,
    network: NetworkSpec,
    exec: Optional[Command],
    count: Optional[int] = None,
    partial: bool = False,
) -> Call[MadeSeveral]:
    """Make a sandbox, or with `count` several."""
    body = {
        "image": image,
        "checkpoint": checkpoint,
        "memoryMB": memory_mb,
        "cpus": cpus,
        "diskMB": disk_mb,
        "env": None if env is None else dict(env),
        "metadata": None if metadata is None else dict(metadata),
        "timeoutSeconds": timeout_seconds,
        "idleTimeoutSeconds": idle_timeout_seconds,
        "network": None if network == "none" else _network(network),
        "exec": None if exec is None else exec_request(exec),
        "count": count,
        "partial": partial or None,
    }
    read = _read_one if count is None else _read_several
    return Call("POST", "/v1/sandboxes", read, body=json_body(body), headers=once_headers(), slow=True)


def fork_sandbox(
    sandbox: str,
    *,
    count: int,
    memory_mb: Optional[int],
    env: Optional[Mapping[str, str]],
    metadata: Optional[Mapping[str, str]],
    timeout_seconds: Optional[int],
    idle_timeout_seconds: Optional[int] = None,
    network: Optional[NetworkSpec],
    partial: bool,
) -> Call[MadeSeveral]:
    """Fork a running sandbox."""
    body = {
        "count": count,
        "memoryMB": memory_mb,
        "env": None if env is None else dict(env),
        "metadata": None if metadata is None else dict(metadata),
        "timeoutSeconds": timeout_seconds,
        "idleTimeoutSeconds": idle_timeout_seconds,
        "network": None if network is None else _network(network),
        "partial": partial or None,
    }
    return Call(
        "POST",
        f"/v1/sandboxes/{segment(sandbox)}/fork",
        _read_several,
        body=json_body(body),
        headers=once_headers(),
        slow=True,
    )


def _network(network: NetworkSpec) -> Union[str, dict[str, list[str]]]:
    if isinstance(network, str):
        return network
    if any(isinstance(value, str) for value in network.values()):
        raise TypeError("what may be reached is a list")
    return {key: list(value) for key, value in network.items()}


def _read_made(found: Any, where: str = "") -> Made:
    info = decode(SandboxInfo, found, where)
    ran = found.get("exec")
    return Made(info, None if ran is None else decode(ExecResult, ran, f"{where}.exec" if where else "exec"))


def _read_one(reply: Reply) -> MadeSeveral:
    return MadeSeveral([_read_made(reply.json())])


def _read_several(reply: Reply) -> MadeSeveral:
    found = reply.json()
    if not isinstance(found, dict) or not isinstance(found.get("sandboxes"), list):
        raise BadAnswerError("sandboxes should be a list in the answer")
    made = [_read_made(item, f"sandboxes[{number}]") for number, item in enumerate(found["sandboxes"])]
    failed = [from_body(item) for item in found.get("errors") or []]
    return MadeSeveral(made, failed, found.get("pausedUs"))


def list_sandboxes(metadata: Optional[Mapping[str, str]]) -> Call[list[SandboxInfo]]:
    """List sandboxes, maybe only those with all of this metadata."""
    query = {f"metadata.{key}": value for key, value in (metadata or {}).items()}
    return Call("GET", "/v1/sandboxes", read_list(SandboxInfo, "sandboxes"), query=query)


def get_sandbox(sandbox: str, usage: bool = False) -> Call[SandboxInfo]:
    """Look at a sandbox."""
    query = {"usage": "1"} if usage else {}
    return Call("GET", _sandbox(sandbox), read_as(SandboxInfo), query=query)


def usage_of(info: SandboxInfo) -> Usage:
    """Take out what a sandbox has used.

    Raises:
        BadAnswerError: It is not there, although it was asked for.
    """
    if info.usage is None:
        raise BadAnswerError("usage is missing in the answer")
    return info.usage


def update_sandbox(
    sandbox: str,
    *,
    memory_mb: Optional[int] = None,
    timeout_seconds: Optional[int] = None,
    idle_timeout_seconds: Optional[int] = None,
    metadata: Optional[Mapping[str, str]] = None,
) -> Call[SandboxInfo]:
    """Change a sandbox."""
    body = {
        "memoryMB": memory_mb,
        "timeoutSeconds": timeout_seconds,
        "idleTimeoutSeconds": idle_timeout_seconds,
        "metadata": None if metadata is None else dict(metadata),
    }
    return Call(
        "PATCH",
        _sandbox(sandbox),
        read_as(SandboxInfo),
        body=json_body(body),
        headers=JSON_HEADERS,
        slow=memory_mb is not None,
    )


def delete_sandbox(sandbox: str) -> Call[None]:
    """End a sandbox."""
    return Call("DELETE", _sandbox(sandbox), read_nothing)


def run_command(sandbox: str, request: Mapping[str, Any]) -> Call[ExecResult]:
    """Run a command to its end. Nobody can tell whether one that was lost has run: it is not tried again."""
    return Call(
        "POST",
        _sandbox(sandbox, "/exec"),
        read_as(ExecResult),
        body=json_body(request),
        headers=JSON_HEADERS,
        again=False,
        slow=True,
    )


def exec_target(sandbox: str) -> str:
    """Give the path of a command's stream."""
    return _sandbox(sandbox, "/exec")


def pause_sandbox(sandbox: str) -> Call[SandboxInfo]:
    """Pause a sandbox."""
    return Call("POST", _sandbox(sandbox, "/pause"), read_as(SandboxInfo), slow=True)


def resume_sandbox(sandbox: str) -> Call[SandboxInfo]:
    """Let a paused sandbox go on."""
    return Call("POST", _sandbox(sandbox, "/resume"), read_as(SandboxInfo), slow=True)


def sandbox_logs(sandbox: str) -> Call[str]:
    """Read a sandbox's console."""
    return Call("GET", _sandbox(sandbox, "/logs"), read_text)


def _sandbox(sandbox: str, rest: str = "") -> str:
    return f"/v1/sandboxes/{segment(sandbox)}{rest}"


def delete_made(several: MadeSeveral) -> list[Call[None]]:
    """End each of several sandboxes that were made at once."""
    return [delete_sandbox(made.info.id) for made in several.made]


# Files.


def read_file(sandbox: str, path: str) -> Call[bytes]:
    """Read a file."""
    return Call(
        "GET",
        _sandbox(sandbox, "/files"),
        lambda reply: reply.body,
        query={"path": path},
        slow=True,
    )


def write_file(
    sandbox: str,
    path: str,
    data: Union[bytes, str, None],
    mode: Optional[Mode],
    file: Optional[Path] = None,
) -> Call[FileInfo]:
    """Write a file, of bytes or of a file here."""
    query = {"path": path} if mode is None else {"path": path, "mode": mode_text(mode)}
    return Call(
        "PUT",
        _sandbox(sandbox, "/files"),
        read_as(FileInfo),
        query=query,
        body=data.encode("utf-8") if isinstance(data, str) else data,
        headers={"Content-Type": "application/octet-stream"},
        file=file,
        slow=True,
    )


def list_files(sandbox: str, path: str) -> Call[list[DirEntry]]:
    """List a directory."""
    read = read_list(DirEntry, "entries")
    return Call("GET", _sandbox(sandbox, "/ls"), read, query={"path": path}, slow=True)


def remove_file(sandbox: str, path: str, recursive: bool) -> Call[None]:
    """Remove a file or a directory."""
    query = {"path": path, "recursive": "1"} if recursive else {"path": path}
    # A second try could not tell its own work from a file that never was.
    return Call("DELETE", _sandbox(sandbox, "/files"), read_nothing, query=query, again=False, slow=True)


def make_directory(sandbox: str, path: str, mode: Optional[Mode]) -> Call[None]:
    """Make a directory."""
    query = {"path": path} if mode is None else {"path": path, "mode": mode_text(mode)}
    return Call("POST", _sandbox(sandbox, "/mkdir"), read_nothing, query=query, slow=True)


# Checkpoints.


def checkpoint_sandbox(sandbox: str, name: Optional[str], finalize_memory_mb: Optional[int]) -> Call[CheckpointInfo]:
    """Checkpoint a sandbox."""
    return Call(
        "POST",
        _sandbox(sandbox, "/checkpoints"),
        read_as(CheckpointInfo),
        body=json_body({"name": name, "finalizeMemoryMB": finalize_memory_mb}),
        headers=once_headers(),
        slow=True,
    )


def list_checkpoints() -> Call[list[CheckpointInfo]]:
    """List checkpoints."""
    return Call("GET", "/v1/checkpoints", read_list(CheckpointInfo, "checkpoints"))


def get_checkpoint(checkpoint: str) -> Call[CheckpointInfo]:
    """Look at a checkpoint."""
    return Call("GET", f"/v1/checkpoints/{segment(checkpoint)}", read_as(CheckpointInfo))


def delete_checkpoint(checkpoint: str) -> Call[None]:
    """Delete a checkpoint."""
    return Call("DELETE", f"/v1/checkpoints/{segment(checkpoint)}", read_nothing)


# The host.


def host() -> Call[HostInfo]:
    """Look at the host."""
    return Call("GET", "/v1/host", read_as(HostInfo))


def drain(draining: bool) -> Call[HostInfo]:
    """Have the host take new work, or none."""
    body = json_body({"draining": draining})
    return Call("POST", "/v1/host/drain", read_as(HostInfo), body=body, headers=JSON_HEADERS)


def events(last_event_id: Optional[int]) -> Call[None]:
    """Follow the host's events; the answer is a stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return Call("GET", "/v1/events", read_nothing, headers=headers, slow=True)


def read_event(data: str) -> Event:
    """Read an event of the host.

    Raises:
        BadAnswerError: It is none.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise BadAnswerError(f"an event is no JSON: {error}") from error
    return decode(Event, found)


def metrics() -> Call[str]:
    """Read the daemon's metrics."""
    return Call("GET", "/metrics", read_text)


def healthz() -> Call[str]:
    """Ask whether the daemon answers."""
    return Call("GET", "/healthz", read_text)


def openapi() -> Call[Any]:
    """Read the daemon's description of its interface."""
    return Call("GET", "/v1/openapi.json", lambda reply: reply.json())
