"""What can go wrong, as exceptions.

All are `SporeError`s. The daemon's have its stable error code; `SporeError.code` of a code that this version of the
package does not know is that code all the same. The package's own come from where no daemon could answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from .models import ExecResult


class SporeError(Exception):
    """Something went wrong.

    Attributes:
        code: For programs: stable, in snake_case.
        message: For people: one line, or a few with a program's last words.
        details: What there is more to say, by code.
        status: The HTTP status it came with, if it came with one.
    """

    #: The code that a class is for; empty for those that are for several.
    for_code = ""

    def __init__(
        self,
        message: str,
        *,
        code: Optional[str] = None,
        details: Optional[Mapping[str, Any]] = None,
        status: Optional[int] = None,
    ) -> None:
        self.code = code if code is not None else self.for_code
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.status = status
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its arguments, which leave out what is only a keyword.
        return (_unpickled, (type(self), self.message, self.__dict__))


def _unpickled(kind: type[SporeError], message: str, state: dict[str, Any]) -> SporeError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InvalidRequestError(SporeError):
    """The request is malformed, or asks for what nobody can have."""

    for_code = "invalid_request"


class InvalidManifestError(SporeError):
    """The manifest was refused; `details` names the field where there is one."""

    for_code = "invalid_manifest"


class UnknownBaseError(SporeError):
    """No base of this name is on the host."""

    for_code = "unknown_base"


class BelowFloorError(SporeError):
    """Less memory than what the checkpoint holds."""

    for_code = "below_floor"


class AboveMaximumError(SporeError):
    """More than this sandbox, or any, can have."""

    for_code = "above_maximum"


class NotFoundError(SporeError):
    """There is no such thing."""

    for_code = "not_found"


class NoSuchCallError(SporeError):
    """The daemon has no such call: it may be older than this package."""

    for_code = "no_such_call"


class ConflictError(SporeError):
    """It cannot be in the present state: in use, paused, or of this name already."""

    for_code = "conflict"


class TooLargeError(SporeError):
    """The body, or what is asked for, is larger than the daemon takes."""

    for_code = "too_large"


class InsufficientCapacityError(SporeError):
    """The host has no room; `details` says what would fit."""

    for_code = "insufficient_capacity"


class DrainingError(SporeError):
    """The host takes no new sandboxes or builds."""

    for_code = "draining"


class BusyError(SporeError):
    """Too many requests of this kind at once; try again in a moment."""

    for_code = "busy"


class BuildFailedError(SporeError):
    """A build's step failed. A `BuildOomError` and a `BuildDiskFullError` are, too."""

    for_code = "build_failed"


class BuildOomError(BuildFailedError):
    """A build's step ran out of memory: build it with more `Image.builder_memory`."""

    for_code = "build_oom"


class BuildDiskFullError(BuildFailedError):
    """A build's step found the disk full: build it with more `diskMB`, of the raw manifest."""

    for_code = "build_disk_full"


class BaseDamagedError(SporeError):
    """A base cannot be used; it has to be built again."""

    for_code = "base_damaged"


class OperationCancelledError(SporeError):
    """It was stopped by whoever asked, or with the build it waited for."""

    for_code = "cancelled"


class TimedOutError(SporeError):
    """It took the daemon longer than was allowed."""

    for_code = "timed_out"


class GuestUnreachableError(SporeError):
    """The agent in the sandbox did not answer."""

    for_code = "guest_unreachable"


class SandboxEndedError(SporeError):
    """The sandbox ended while it was worked with."""

    for_code = "sandbox_ended"


class GuestRefusedError(SporeError):
    """The sandbox itself refused: a file that is not there, a user that it does not have."""

    for_code = "guest_refused"


class DamagedError(SporeError):
    """What is in the host's store is damaged or of another version."""

    for_code = "damaged"


class UnsupportedError(SporeError):
    """The host lacks what is needed, for example the privilege to make networks."""

    for_code = "unsupported"


class InternalError(SporeError):
    """The daemon is at fault."""

    for_code = "internal"


class DaemonUnreachableError(SporeError):
    """No daemon could be reached: it has done nothing of what was asked."""

    for_code = "daemon_unreachable"


class ConnectionLostError(SporeError):
    """The connection ended before the answer did: it is not known whether the daemon did what was asked."""

    for_code = "connection_lost"


class RequestTimeoutError(SporeError):
    """The daemon did not answer within the client's own time limit."""

    for_code = "request_timeout"


class BadAnswerError(SporeError):
    """The daemon's answer is not what this package understands."""

    for_code = "bad_answer"


class CommandFailedError(SporeError):
    """A command ended with another exit code than 0, and `check` was asked for.

    Attributes:
        result: How it ended, and what it wrote.
    """

    for_code = "command_failed"

    def __init__(self, message: str, *, result: ExecResult) -> None:
        super().__init__(message)
        self.result = result


#: The exceptions for the codes that a daemon answers with.
BY_CODE: Mapping[str, type[SporeError]] = {
    kind.for_code: kind
    for kind in (
        InvalidRequestError,
        InvalidManifestError,
        UnknownBaseError,
        BelowFloorError,
        AboveMaximumError,
        NotFoundError,
        NoSuchCallError,
        ConflictError,
        TooLargeError,
        InsufficientCapacityError,
        DrainingError,
        BusyError,
        BuildFailedError,
        BuildOomError,
        BuildDiskFullError,
        BaseDamagedError,
        OperationCancelledError,
        TimedOutError,
        GuestUnreachableError,
        SandboxEndedError,
        GuestRefusedError,
        DamagedError,
        UnsupportedError,
        InternalError,
    )
}


def from_body(body: Any, status: Optional[int] = None) -> SporeError:
    """Make the exception that an `{"code", "message", "details"?}` of the daemon says.

    Args:
        body: The object; whatever it really is gives an exception.
        status: The HTTP status it came with.
    """
    if isinstance(body, dict) and isinstance(body.get("code"), str):
        details = body.get("details")
        return BY_CODE.get(body["code"], SporeError)(
            str(body.get("message", "")),
            code=body["code"],
            details=details if isinstance(details, dict) else None,
            status=status,
        )
    return BadAnswerError(f"the daemon answered an error without a code: {body!r:.200}", status=status)
