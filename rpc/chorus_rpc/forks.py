"""Knowledge of forks. gRPC's threads do not exist in a forked process: its channels wait there forever.

gRPC ends its own threads some time after the last channel is closed, and a fork before that leaves a child in
which every new channel may hang. A process that forks before its first channel is no problem.
"""

from __future__ import annotations

import os
import sys
import weakref

# Channels of this process that are not deallocated.
_channels: weakref.WeakSet[object] = weakref.WeakSet()
# Channels of the parent, kept for ever: their deallocation would wait for threads that do not exist here.
_inherited: list[object] = []
_has_used_grpc = False
_parent: int | None = None
_process = os.getpid()


def track(channel: object) -> None:
    """Records a channel of this process."""
    global _has_used_grpc
    _has_used_grpc = True
    _channels.add(channel)


def find_parent_with_channels() -> int | None:
    """Returns the id of the process that had opened channels when this one was forked from it, if any."""
    return _parent


def _mark_child() -> None:
    global _parent, _process
    if _has_used_grpc:
        _inherited.extend(_channels)
        _channels.clear()
        _parent = _process
    _process = os.getpid()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_mark_child)
