"""What the daemon answers, as data: one frozen class a type of the HTTP interface.

Sizes of memory are MiB where a name ends in `_mb`, all other sizes are bytes; times are whole milliseconds or
microseconds where a name ends in `_ms` or `_us`; instants are seconds since 1970-01-01 UTC where it ends in `_at`.
"""

# Types are read at run time, also by Python 3.9: Optional[int], not int | None.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

from .errors import SporeError

#: What a sandbox reaches: nothing, everything beyond the host's uplink, or what is listed: networks
#: (`198.51.100.0/24`) and hosts with or without a port (`example.com:443`). Never the host or other sandboxes.
NetworkPolicy = Union[str, Mapping[str, list[str]]]

#: What may be given for a `NetworkPolicy`.
NetworkSpec = Union[Literal["none", "nat"], Mapping[str, list[str]]]

#: What the steps of a build reach: `auto`, everything beyond the host where the host can give a network and nothing
#: otherwise; or as a sandbox's, on a host that can give it.
BuildNetworkSpec = Union[Literal["auto"], NetworkSpec]


@dataclass(frozen=True)
class ImageCheckpoint:
    """A checkpoint of an image: its disks, booted."""

    id: str
    #: The memory it holds: the least a fork of it has.
    floor_mb: int
    cpus: int


@dataclass(frozen=True)
class ImageInfo:
    """An image that is on the host."""

    id: str
    #: The names that mean it now.
    names: list[str]
    #: SHA-256 over what it was built from; equal to `Image.content_hash()`.
    content_hash: str
    #: BLAKE3 of the base's disk.
    base_digest: str
    created_at: int
    #: What its disk layers take on the host.
    size_bytes: int
    #: Memory of the VM it was built in.
    builder_memory_mb: int
    checkpoints: list[ImageCheckpoint]
    #: What its disk was grown to; `None` where it has its base's size.
    disk_mb: Optional[int] = None


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint: a VM at rest."""

    id: str
    #: What it is of: `image` or `sandbox`. One of an image goes with that; one of a sandbox stays until deleted.
    kind: str
    #: The memory it holds: the least a fork of it has.
    floor_mb: int
    #: The most a fork of it can have.
    max_memory_mb: int
    cpus: int
    #: Bytes of memory that are not zero: what its memory file takes.
    memory_bytes: int
    disk_mb: int
    created_at: int
    name: Optional[str] = None
    #: How long the sandbox stood still for it; only in the answer to the call that took it, and not if it was booted.
    paused_us: Optional[int] = None


@dataclass(frozen=True)
class SandboxMemory:
    """A sandbox's memory."""

    #: The least it can have.
    floor_mb: int
    #: What was asked for last.
    requested_mb: int
    #: What it has, as verified in the guest.
    granted_mb: int
    #: The most it can have.
    max_mb: int


@dataclass(frozen=True)
class Network:
    """A sandbox's place on the network."""

    policy: NetworkPolicy
    #: Its IPv4 address.
    address: Optional[str] = None
    mac: Optional[str] = None


@dataclass(frozen=True)
class SandboxTimes:
    """How long a sandbox's making took, from when the daemon had read the request."""

    #: All machine state set (T1).
    released_us: int
    #: The guest's first act (T2).
    woke_us: int
    #: It is who it should be (T3).
    ready_us: int


@dataclass(frozen=True)
class Usage:
    """What a sandbox has used, for accounts."""

    #: Processor time of its VM process, in all.
    cpu_ms: int
    #: Memory of its VM process that is resident, shared pages included.
    rss_bytes: int
    #: Of that, what is its own: written by it, or by its guest, and shared with no other.
    unique_bytes: int
    #: Memory plugged beyond the floor.
    plugged_bytes: int
    #: What its disk's own overlay takes on the host.
    disk_bytes: int
    network_received_bytes: int
    network_sent_bytes: int


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox, as it was when the daemon answered."""

    id: str
    #: `running`, or `paused`: its vCPUs stand, its memory stays.
    state: str
    #: Where it came from: `shell` (was ready), `fork` (of a checkpoint) or `liveFork` (of another sandbox).
    origin: str
    memory: SandboxMemory
    cpus: int
    network: Network
    #: Its owner's words.
    metadata: dict[str, str]
    created_at: int
    #: When it was last used.
    last_used_at: int
    times: SandboxTimes
    #: The image it was made of.
    image: Optional[str] = None
    #: The checkpoint it was made of.
    checkpoint: Optional[str] = None
    #: The sandbox it was forked from.
    parent: Optional[str] = None
    #: When it will be destroyed; `None`: never.
    expires_at: Optional[int] = None
    #: After how many seconds without use it will be destroyed; `None`: never.
    idle_timeout_seconds: Optional[int] = None
    #: What it has used; only where that was asked for.
    usage: Optional[Usage] = None


@dataclass(frozen=True)
class ExecResult:
    """How a command ended, and what it wrote."""

    #: As a shell has it: 128 and the signal's number if one killed it; 124 if the time limit did; 127 if there is no
    #: such program.
    exit_code: int
    #: Whether it was killed at its time limit.
    timed_out: bool
    #: Processes the guest killed for want of memory meanwhile.
    oom_kills: int
    #: How long it ran, as the daemon saw it.
    took_ms: int
    #: The largest resident set of its processes.
    max_rss_bytes: int
    #: What it wrote to its standard output, byte for byte.
    stdout_bytes: bytes = field(repr=False)
    #: Likewise its standard error.
    stderr_bytes: bytes = field(repr=False)
    #: Whether more was written than is kept (8 MiB each): what came after is missing.
    truncated: bool
    #: The signal that killed it.
    signal: Optional[int] = None

    @property
    def stdout(self) -> str:
        """Its standard output as text; bytes that are not UTF-8 are U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Its standard error as text; bytes that are not UTF-8 are U+FFFD."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether its exit code is 0."""
        return self.exit_code == 0


@dataclass(frozen=True)
class ExecOutput:
    """A piece of what a command wrote."""

    #: `stdout` or `stderr`; with a terminal all is `stdout`.
    stream: Literal["stdout", "stderr"]
    #: Bytes as they came: a character may begin in one piece and end in the next.
    data: bytes


@dataclass(frozen=True)
class DirEntry:
    """A name in a directory."""

    #: The name; bytes that are not UTF-8 are U+FFFD.
    name: str
    #: `file`, `directory`, `symlink` (not followed) or `other`.
    kind: str
    size_bytes: int
    #: Permission bits, as four octal digits.
    mode: str
    #: Last change of its contents, seconds since 1970-01-01 UTC.
    modified_at: int


@dataclass(frozen=True)
class FileInfo:
    """A file that was written."""

    path: str
    size_bytes: int


@dataclass(frozen=True)
class Capacity:
    """The host's memory, and what of it is promised."""

    total_mb: int
    #: What its kernel would give now (MemAvailable).
    available_mb: int
    #: Kept for the host itself.
    reserve_mb: int
    #: What may be promised in all: (total - reserve) times the overcommit.
    limit_mb: int
    #: What is promised: the granted memory of all sandboxes and running builds.
    committed_mb: int
    #: Of that, what is plugged beyond floors.
    plugged_mb: int
    #: What VM processes have resident and do not share.
    unique_mb: int
    #: By how much memory is promised more than once.
    overcommit: float
    #: The largest sandbox that would be admitted now.
    largest_fit_mb: int


@dataclass(frozen=True)
class Pressure:
    """Pressure stall information, in percent of the last 10 s."""

    memory_some: float
    memory_full: float
    cpu_some: float
    io_some: float


@dataclass(frozen=True)
class Versions:
    """Versions of what runs on the host."""

    #: Of the daemon.
    spore: str
    #: Of the HTTP interface.
    api: str
    #: Of the host's kernel.
    kernel: str
    #: BLAKE3 of the guest kernel's file; `None` if there is none.
    guest_kernel: Optional[str] = None


@dataclass(frozen=True)
class HostInfo:
    """The host, as a scheduler sees it."""

    #: Whether new sandboxes and builds are refused.
    draining: bool
    memory: Capacity
    cpus: int
    #: Load averages of 1, 5 and 15 minutes.
    load: list[float]
    #: The data directory: its absolute path without symbolic links.
    data_dir: str
    #: Size of the file system with the data directory.
    disk_total_bytes: int
    disk_free_bytes: int
    sandboxes: int
    #: The most there may be.
    max_sandboxes: int
    #: Builds that are running.
    builds: int
    #: The most at once.
    max_builds: int
    #: Commands that run, in all sandboxes.
    execs: int
    #: The most at once.
    max_execs: int
    #: Ids of the images that are here.
    images: list[str]
    #: Ids of the checkpoints that are here.
    checkpoints: list[str]
    #: Templates that are loaded.
    templates: int
    #: Shells that are armed.
    shells: int
    #: The kind of KVM: `vmx`, `svm`, `pvm` (software, interprets guest kernels) or `unknown`.
    kvm: str
    #: What VM processes are confined by, and what this host lacks for it.
    confinement: list[str]
    versions: Versions
    #: When the daemon was started.
    started_at: int
    #: `None` where the kernel does not tell.
    pressure: Optional[Pressure] = None


@dataclass(frozen=True)
class Build:
    """A build, also one that has ended within the last hour."""

    id: str
    #: `running`, `succeeded` or `failed`.
    state: str
    started_at: int
    #: How long it took, or has taken.
    took_ms: int
    #: The manifest's name.
    name: Optional[str] = None
    #: What it came to.
    image: Optional[ImageInfo] = None
    #: Why it came to nothing.
    error: Optional[SporeError] = None


@dataclass(frozen=True)
class BuildMessage:
    """What a build tells. Which fields there are goes by `type`.

    `build`: build_id · `phase`: phase, message · `stepStarted`, `stepCached`: step, of, label · `output`: text ·
    `stepDone`: step, took_ms · `image`: image, the last of a good build. There may be new types.
    """

    type: str
    build_id: Optional[str] = None
    phase: Optional[str] = None
    message: Optional[str] = None
    #: The step's number, from 0.
    step: Optional[int] = None
    #: How many steps there are.
    of: Optional[int] = None
    #: What the step is, on one line.
    label: Optional[str] = None
    text: Optional[str] = None
    took_ms: Optional[int] = None
    image: Optional[ImageInfo] = None


@dataclass(frozen=True)
class Event:
    """What happened on the host. Which fields there are goes by `type`.

    `started`: adopted · `sandboxCreated`: sandbox · `sandboxResized`: sandbox, granted_mb · `sandboxEnded`: sandbox,
    cause, usage · `sandboxLost`: sandbox, cause · `buildStarted`: build · `buildEnded`: build, and image, or error and
    cause · `templateLost`: checkpoint, cause · `checkpointCreated`, `checkpointDeleted`: checkpoint ·
    `imageDeleted`: image · `draining`: draining · `memoryPressure`: dropped · `memoryShort`: refusing ·
    `missed`: count, events that are missing here. There may be new types.
    """

    #: Rises by one from event to event; to resume by.
    id: int
    #: When, in milliseconds since 1970-01-01 UTC.
    time_ms: int
    type: str
    #: Sandboxes of an earlier daemon that run on.
    adopted: Optional[int] = None
    sandbox: Optional[str] = None
    granted_mb: Optional[int] = None
    cause: Optional[str] = None
    build: Optional[str] = None
    image: Optional[str] = None
    #: A build's error code.
    error: Optional[str] = None
    checkpoint: Optional[str] = None
    draining: Optional[bool] = None
    #: What was given back: `shells`, `templates` or `balloons`.
    dropped: Optional[str] = None
    #: Whether new work is refused, since memory stays short.
    refusing: Optional[bool] = None
    #: What an ended sandbox had used, as far as it could still be seen.
    usage: Optional[Usage] = None
    count: Optional[int] = None
    #: All of it, as the daemon wrote it.
    raw: dict[str, Any] = field(default_factory=dict, repr=False)
