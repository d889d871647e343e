"""Suspends the calls to a dependency that does not answer, until a probe in the background is answered.

Without it, every request waits out its full time limit for as long as the dependency is silent.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from chorus_rpc import errors
from chorus_rpc.errors import ChorusError

from services.runtime.logs import get_logger

log = get_logger("breaker")

# Duration from which a failed or abandoned call shows that the dependency is silent, in seconds. Calls that
# fail faster cost their callers little and need no breaker.
SILENCE_SECONDS = 1.0
# Upper bound on one probe, in seconds.
PROBE_SECONDS = 2.0
_FIRST_PAUSE = 0.1
_MAX_PAUSE = 2.0


class State(enum.Enum):
    """CLOSED lets calls pass; OPEN refuses them; HALF_OPEN refuses them while a probe is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """State machine of a circuit breaker. It makes no calls.

    Args:
        first_pause: time from opening to the first probe, in seconds; doubled after each failed probe.
        max_pause: upper bound on the time between two probes, in seconds.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self, first_pause: float, max_pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_pause = first_pause
        self._max_pause = max_pause
        self._clock = clock
        self._pause = first_pause
        self._probe_time = 0.0
        self.state = State.CLOSED

    def trip(self) -> bool:
        """Opens a closed breaker; returns False if it was not closed."""
        if self.state is not State.CLOSED:
            return False
        self._open(self._first_pause)
        return True

    def reset(self) -> None:
        """Closes the breaker without a probe."""
        self.state = State.CLOSED

    def seconds_until_probe(self) -> float:
        """Returns the time until the next probe, in seconds; 0 when one is due."""
        return max(0.0, self._probe_time - self._clock())

    def begin_probe(self) -> bool:
        """Starts a probe if one is due and none is under way; returns whether it did."""
        if self.state is not State.OPEN or self.seconds_until_probe() > 0:
            return False
        self.state = State.HALF_OPEN
        return True

    def end_probe(self, answered: bool) -> None:
        """Closes the breaker after a probe that was answered; opens it again otherwise."""
        if self.state is not State.HALF_OPEN:
            raise RuntimeError("no probe is under way")
        if answered:
            self.state = State.CLOSED
        else:
            self._open(min(2 * self._pause, self._max_pause))

    def _open(self, pause: float) -> None:
        self.state = State.OPEN
        self._pause = pause
        self._probe_time = self._clock() + pause


class Guard:
    """Breaker of one dependency, with the background task that probes it.

    Args:
        name: name of the dependency in errors and in the log.
        probe: short call that raises unless the dependency answers.
        on_change: callback after each change of `is_open`.
        max_pause: upper bound on the time between two probes, in seconds.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        *,
        on_change: Callable[[], None] = lambda: None,
        max_pause: float = _MAX_PAUSE,
    ) -> None:
        self._name = name
        self._probe = probe
        self._on_change = on_change
        self._breaker = Breaker(min(_FIRST_PAUSE, max_pause), max_pause)
        self._cause = ""
        self._recovery: asyncio.Task[None] | None = None
        self._suspicion: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._breaker.state is not State.CLOSED

    def unavailable(self) -> ChorusError:
        """Returns the DEPENDENCY_UNAVAILABLE error of a call that is refused."""
        return errors.unavailable(self._name, f"{self._cause}; calls are suspended until it answers a probe")

    def require_closed(self) -> None:
        """Raises DEPENDENCY_UNAVAILABLE while calls are suspended."""
        if self.is_open:
            raise self.unavailable()

    @contextmanager
    def call(self, limit: float = math.inf) -> Iterator[None]:
        """Guards one call: refused while calls are suspended, and a sign of silence if it fails slowly.

        A call that its caller abandons long before the limit may have been under way on a healthy
        dependency: a probe decides, and calls continue until it fails.

        Args:
            limit: time limit of the call, in seconds; a call that reached it was not answered.
        """
        self.require_closed()
        begin = time.monotonic()
        try:
            yield
        except (ChorusError, asyncio.CancelledError) as error:
            seconds = time.monotonic() - begin
            # Any other error was an answer.
            unanswered = not isinstance(error, ChorusError) or error.reason in (
                errors.DEADLINE_EXCEEDED,
                errors.DEPENDENCY_UNAVAILABLE,
            )
            # gRPC rounds its time limits.
            if unanswered and seconds >= min(SILENCE_SECONDS, 0.9 * limit):
                cause = f"no answer in {seconds:.1f} s"
                if isinstance(error, ChorusError) or seconds >= 0.9 * limit:
                    self.report_silence(cause)
                else:
                    self.suspect(cause)
            raise

    def suspect(self, cause: str) -> None:
        """Probes once in the background; suspends calls only if that probe is not answered."""
        if self.is_open or (self._suspicion is not None and not self._suspicion.done()):
            return
        self._suspicion = asyncio.create_task(self._verify(cause), name=f"verify {self._name}")

    async def settled(self) -> None:
        """Waits for the probe of a suspicion, at most PROBE_SECONDS; returns at once if there is none."""
        if self._suspicion is not None:
            await asyncio.wait((self._suspicion,))

    def report_silence(self, cause: str) -> None:
        """Suspends calls, and probes until the dependency answers. Call it on the event loop."""
        if not self._breaker.trip():
            return
        self._cause = cause
        log.warning("calls suspended", dependency=self._name, reason=cause)
        self._recovery = asyncio.create_task(self._recover(), name=f"probe {self._name}")
        self._recovery.add_done_callback(self._handle_end)
        self._on_change()

    async def close(self) -> None:
        """Ends the probes."""
        if self._suspicion is not None:
            self._suspicion.cancel()
            await asyncio.wait((self._suspicion,))
        if self._recovery is not None:
            self._recovery.remove_done_callback(self._handle_end)
            self._recovery.cancel()
            await asyncio.wait((self._recovery,))

    def _handle_end(self, recovery: asyncio.Task[None]) -> None:
        """Permits calls again when the probes have ended without an answer: nothing else would."""
        cause = None if recovery.cancelled() else recovery.exception()
        if recovery is self._recovery and self.is_open:
            log.error("probes ended early; calls resumed", dependency=self._name, exc_info=cause)
            self._breaker.reset()
            self._on_change()
        elif cause is not None:
            log.error("probes failed", dependency=self._name, exc_info=cause)

    async def _verify(self, cause: str) -> None:
        if not await self._answers():
            self.report_silence(cause)

    async def _recover(self) -> None:
        while self.is_open:
            await asyncio.sleep(self._breaker.seconds_until_probe())
            if self._breaker.begin_probe():
                self._breaker.end_probe(await self._answers())
        log.info("calls resumed", dependency=self._name)
        self._on_change()

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._probe()
        except Exception as error:  # noqa: BLE001 -- a probe that fails in any way is not answered
            log.debug("probe not answered", dependency=self._name, error=str(error))
            return False
        return True
