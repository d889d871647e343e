"""Knowledge of forks. gRPC's threads do not exist in a forked process: its channels wait there forever.

A process that forks while it has no channel is no problem: gRPC starts anew in the child.
"""

from __future__ import annotations

import os
import sys
import weakref

# Open channels of this process. A channel counts until it is deallocated, which ends gRPC's threads.
_channels: weakref.WeakSet[object] = weakref.WeakSet()
# Channels of the parent, kept for ever: their deallocation would wait for threads that do not exist here.
_inherited: list[object] = []
_parent: int | None = None
_process = os.getpid()


def track(channel: object) -> None:
    """Records a channel of this process."""
    _channels.add(channel)


def find_parent_with_channels() -> int | None:
    """Returns the id of the process that had open channels when this one was forked from it, if any."""
    return _parent


def _mark_child() -> None:
    global _parent, _process
    if _channels:
        _inherited.extend(_channels)
        _channels.clear()
        _parent = _process
    _process = os.getpid()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_mark_child)
