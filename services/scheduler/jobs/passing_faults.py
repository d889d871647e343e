"""Faults of the scheduler's own resources that pass: a full disk, no free file descriptor, a locked database.

The same operation may succeed a little later, so that a job waits and does not end.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import TypeVar

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger
from services.scheduler.jobs.deadline import Deadline

log = get_logger("passing_faults")

T = TypeVar("T")

# A file above `ulimit -f` or a limit of the file system is one more kind of lack of space.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PASSING = _DISK_FULL | {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
}
# Delays before a retry that are suggested to callers, in seconds.
_RETRY_SECONDS = 1.0
_RETRY_FULL_SECONDS = 5.0
# Pauses of `wait_out`, in seconds; each is twice as long as the one before.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class PassingFault(ChorusError):
    """Fault of a resource of the scheduler that may pass: DISK_FULL, or DEPENDENCY_UNAVAILABLE.

    Args:
        resource: noun phrase for people, for instance "the job database".
        setting: environment variable that names the location of the resource; empty if none does.
        cause: description of the fault.
    """

    def __init__(self, resource: str, setting: str, cause: str, *, disk_full: bool = False) -> None:
        metadata = {"service": "scheduler", **({"setting": setting} if setting else {})}
        if disk_full:
            super().__init__(
                errors.DISK_FULL,
                f"{resource} cannot be written: {cause}; free space on its disk, or choose another location"
                f" by {setting}",
                metadata=metadata,
                retry_after=_RETRY_FULL_SECONDS,
            )
        else:
            super().__init__(
                errors.DEPENDENCY_UNAVAILABLE,
                f"{resource} is not available: {cause}",
                metadata=metadata,
                retry_after=_RETRY_SECONDS,
            )


def find_passing_fault(error: Exception, resource: str, setting: str = "") -> PassingFault | None:
    """Returns the passing fault that an exception of the operating system stands for; None if it is another.

    Args:
        resource, setting: as for `PassingFault`.
    """
    if isinstance(error, OSError) and error.errno in _PASSING:
        return PassingFault(
            resource,
            setting,
            error.strerror or str(error),
            disk_full=bool(setting) and error.errno in _DISK_FULL,
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return PassingFault(resource, setting, "no further thread can be started")
    return None


async def wait_out(
    action: Callable[[], Awaitable[T]],
    deadline: Deadline,
    on_first: Callable[[PassingFault], Awaitable[None]] | None = None,
) -> T:
    """Returns the result of `action`, repeated until it raises no PassingFault.

    Args:
        deadline: deadline of the job that waits.
        on_first: called with the first fault.

    Raises DEADLINE_EXCEEDED that names the fault once the deadline has passed.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await action()
        except PassingFault as error:
            fault = error
        log.warning("waits for a resource", error=fault.message, retry_in_seconds=pause)
        if on_first is not None and pause == _FIRST_PAUSE:
            await on_first(fault)
        try:
            left = deadline.seconds_left()
        except ChorusError as late:
            raise ChorusError(
                late.reason, f"{late.message}; it waited, because {fault.message}", metadata=late.metadata
            ) from fault
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
