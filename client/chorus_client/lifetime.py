"""End of a client's life: it is closed, or in another process."""

from __future__ import annotations

import os

from chorus_rpc import errors, forks
from chorus_rpc.errors import ChorusError


class ClientClosed(ChorusError, RuntimeError):
    """Use of a client after `close`, or a call that `close` ended."""

    def __init__(self) -> None:
        super().__init__(errors.WRONG_STATE, "this client is closed")


class ForkedClient(ChorusError, RuntimeError):
    """Use of a client in a process that was forked from the one that created it."""

    def __init__(self, message: str) -> None:
        super().__init__(errors.WRONG_STATE, message)


class Lifetime:
    """Process that owns a client, and whether the client is closed.

    Creating one raises ForkedClient in a process that was forked from one that had used a client: gRPC does
    not work there.
    """

    def __init__(self) -> None:
        parent = forks.find_parent_with_channels()
        if parent is not None:
            raise ForkedClient(
                f"this process ({os.getpid()}) was forked from process {parent} after a client was created"
                " there; fork before the first client, or start processes with spawn"
            )
        self._pid = os.getpid()
        self.closed = False

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that created the client."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises ForkedClient in a forked process, ClientClosed after the end."""
        if self.is_inherited:
            raise ForkedClient(
                f"this client was created in process {self._pid}, and this is process {os.getpid()};"
                " create it in the process that uses it, or start processes with spawn"
            )
        if self.closed:
            raise ClientClosed
