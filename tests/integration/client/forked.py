"""Uses clients across a fork, for test_fork.py: `python -m tests.integration.client.forked CASE TARGET`.

Prints a JSON line for each outcome in the child, then how the child ended, then what the parent sees.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from chorus_client import AsyncChorusClient, ChorusClient

CHILD_SECONDS = 10.0


def report(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def attempt(name: str, action: Callable[[], object]) -> None:
    """Runs an action in a thread, because it may never return, and reports its outcome."""
    outcome: dict[str, Any] = {"outcome": "hangs"}

    def work() -> None:
        try:
            action()
            outcome.update(outcome="returned")
        except Exception as error:  # noqa: BLE001 -- the outcome is what is tested
            outcome.update(outcome=type(error).__name__, message=str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(2)
    report(action=name, **outcome)


def in_child(child: Callable[[], None]) -> None:
    """Runs `child` in a forked process and reports its exit status."""
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(CHILD_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        report(child="hangs")
    else:
        report(child=process.exitcode)


def use_sync(target: str) -> None:
    client = ChorusClient(target)
    handle = client.submit("slow circle")
    events: Any = handle.events()
    next(events)

    def child() -> None:
        attempt("list", client.list)
        attempt("submit", lambda: client.submit("x"))
        attempt("generate", lambda: client.generate("x"))
        attempt("handle", lambda: client.handle(handle.id).status())
        attempt("result", lambda: handle.result(timeout=1))
        attempt("iterator", lambda: next(events))
        attempt("closed iterator", events.close)
        attempt("close", client.close)
        attempt("close again", client.close)
        attempt("list", client.list)

    in_child(child)
    report(parent=[generation.id for generation in client.list()], next=next(events).kind)
    handle.cancel()
    client.close()


async def use_async(target: str) -> None:
    client = AsyncChorusClient(target)
    handle = await client.submit("slow circle")

    def child() -> None:
        def run(make: Callable[[], Awaitable[object]]) -> Callable[[], object]:
            async def use() -> object:
                return await make()

            return lambda: asyncio.new_event_loop().run_until_complete(use())

        asyncio.set_event_loop(None)
        asyncio.events._set_running_loop(None)
        attempt("list", run(client.list))
        attempt("result", run(handle.result))
        attempt("events", run(lambda: anext(handle.events())))
        attempt("close", run(client.close))

    in_child(child)
    report(parent=[generation.id for generation in await client.list()], next="")
    await handle.cancel()
    await client.close()


def create_in_child(target: str, parent: str) -> None:
    if parent != "unused":
        client = ChorusClient(target)
        client.list()
        if parent == "closed":
            client.close()

    def child() -> None:
        def create() -> None:
            with ChorusClient(target) as own:
                own.generate("a red circle")

        attempt("create", create)

    in_child(child)


def exit_of_child(target: str) -> None:
    """Forks without multiprocessing, so that the child runs the interpreter's own clean-up."""
    client = ChorusClient(target)
    client.list()
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    end = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            report(child=os.waitstatus_to_exitcode(status))
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        report(child="hangs")
    client.close()


def main(case: str, target: str) -> None:
    if case == "sync":
        use_sync(target)
    elif case == "async":
        asyncio.run(use_async(target))
    elif case == "exit":
        exit_of_child(target)
    else:
        parents = {"new-in-child": "unused", "new-while-open": "open", "new-after-close": "closed"}
        create_in_child(target, parents[case])


if __name__ == "__main__":
    main(*sys.argv[1:])
