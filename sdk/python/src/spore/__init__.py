"""Spore: sandboxes that are forks of virtual machines.

Build an image in a VM as large as the build needs, run sandboxes of it that wake in milliseconds, grow them on demand,
and fork them as they run.

```python
from spore import Image, Sandbox

image = Image.base().apt_install(["build-essential"]).builder_memory(8192)
with Sandbox.create(image=image, memory_mb=4096) as sandbox:
    print(sandbox.exec("gcc --version", check=True).stdout)
```

`Sandbox` and `Client` are synchronous; `AsyncSandbox` and `AsyncClient` are the same on asyncio. The daemon of the host
is reached through its Unix socket: the environment's SPORE_SOCKET, else `/run/spore/spore.sock`.
"""

from ._version import __version__
from .async_client import AsyncClient
from .async_exec_stream import AsyncExecStream
from .async_files import AsyncFiles
from .async_sandbox import AsyncSandbox, AsyncSandboxGroup
from .client import Client
from .errors import (
    AboveMaximumError,
    BadAnswerError,
    BaseDamagedError,
    BelowFloorError,
    BuildDiskFullError,
    BuildFailedError,
    BuildOomError,
    BusyError,
    CommandFailedError,
    ConflictError,
    ConnectionLostError,
    DaemonUnreachableError,
    DamagedError,
    DrainingError,
    GuestRefusedError,
    GuestUnreachableError,
    InsufficientCapacityError,
    InternalError,
    InvalidManifestError,
    InvalidRequestError,
    NoSuchCallError,
    NotFoundError,
    OperationCancelledError,
    RequestTimeoutError,
    SandboxEndedError,
    SporeError,
    TimedOutError,
    TooLargeError,
    UnknownBaseError,
    UnsupportedError,
)
from .exec_stream import ExecStream
from .files import Files
from .image import Image
from .models import (
    Build,
    BuildMessage,
    BuildNetworkSpec,
    Capacity,
    CheckpointInfo,
    DirEntry,
    Event,
    ExecOutput,
    ExecResult,
    FileInfo,
    HostInfo,
    ImageCheckpoint,
    ImageInfo,
    Network,
    NetworkPolicy,
    NetworkSpec,
    Pressure,
    SandboxInfo,
    SandboxMemory,
    SandboxTimes,
    Usage,
    Versions,
)
from .sandbox import Sandbox, SandboxGroup

__all__ = [
    "AboveMaximumError",
    "AsyncClient",
    "AsyncExecStream",
    "AsyncFiles",
    "AsyncSandbox",
    "AsyncSandboxGroup",
    "BadAnswerError",
    "BaseDamagedError",
    "BelowFloorError",
    "Build",
    "BuildDiskFullError",
    "BuildFailedError",
    "BuildMessage",
    "BuildNetworkSpec",
    "BuildOomError",
    "BusyError",
    "Capacity",
    "CheckpointInfo",
    "Client",
    "CommandFailedError",
    "ConflictError",
    "ConnectionLostError",
    "DaemonUnreachableError",
    "DamagedError",
    "DirEntry",
    "DrainingError",
    "Event",
    "ExecOutput",
    "ExecResult",
    "ExecStream",
    "FileInfo",
    "Files",
    "GuestRefusedError",
    "GuestUnreachableError",
    "HostInfo",
    "Image",
    "ImageCheckpoint",
    "ImageInfo",
    "InsufficientCapacityError",
    "InternalError",
    "InvalidManifestError",
    "InvalidRequestError",
    "Network",
    "NetworkPolicy",
    "NetworkSpec",
    "NoSuchCallError",
    "NotFoundError",
    "OperationCancelledError",
    "Pressure",
    "RequestTimeoutError",
    "Sandbox",
    "SandboxEndedError",
    "SandboxGroup",
    "SandboxInfo",
    "SandboxMemory",
    "SandboxTimes",
    "SporeError",
    "TimedOutError",
    "TooLargeError",
    "UnknownBaseError",
    "UnsupportedError",
    "Usage",
    "Versions",
    "__version__",
]
