"""Verifies that a blocking client ends its calls when it is closed, and rejects calls that would block it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from chorus_client.loop_thread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    running = LoopThread()
    yield running
    running.close()


def test_close_ends_the_calls_of_other_threads_after_their_clean_up(loop: LoopThread) -> None:
    started, cleaned = threading.Event(), threading.Event()

    async def wait() -> None:
        started.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(0)  # clean-up that yields to the loop
            cleaned.set()

    with ThreadPoolExecutor(1) as other:
        call = other.submit(loop.run, wait())
        assert started.wait(10)
        loop.close()
        with pytest.raises(RuntimeError, match="this client is closed"):
            call.result(10)
    assert cleaned.is_set()


def test_call_from_a_callback_is_rejected(loop: LoopThread) -> None:
    async def nothing() -> None:
        """Completes at once."""

    async def call_back() -> None:
        with pytest.raises(RuntimeError, match="a callback must not call the client"):
            loop.run(nothing())
        with pytest.raises(RuntimeError, match="a callback must not call the client"):
            loop.close(nothing())

    loop.run(call_back())
    loop.run(nothing())
