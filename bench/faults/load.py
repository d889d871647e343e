"""Load for the chaos scenarios: what happened to each job, and how much later reuse made it arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from chorus_client import ChorusClient, ChorusError, GenerationError, GenerationHandle

from bench.results import Figure

_RESAMPLES: Final = 10_000
# Pause after a refused submission, in seconds; a user's client would wait about as long.
_REFUSED_SECONDS: Final = 0.25


class Outcome(StrEnum):
    """End of a job, as the user sees it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"  # accepted, but without an end before the limit
    REFUSED = "refused"  # never accepted


@dataclass(frozen=True)
class Job:
    """One job of a load.

    Attributes:
        start: Time of the submission, in seconds after the load began.
        seconds: Time from the submission to the video.
        reused: Whether the job was allowed to use the cache.
        hit: Whether the job used a donor.
        warned: Whether the generation carries a warning.
        error: Description of the fault, empty for a job that succeeded.
    """

    start: float
    seconds: float
    reused: bool
    outcome: Outcome
    hit: bool = False
    warned: bool = False
    error: str = ""


def run_one(client: ChorusClient, prompt: str, *, reused: bool, begin: float, limit: float) -> Job:
    """Submits one job and waits for its video.

    Args:
        begin: Start of the load, in monotonic seconds.
        limit: Upper bound on the wait for the video, in seconds; the job is lost after it.
    """
    start = time.monotonic()
    options = ("balanced", False) if reused else ("off", True)
    try:
        handle = client.submit(prompt, seed=0, reuse=options[0], no_store=options[1])
    except ChorusError as error:
        time.sleep(_REFUSED_SECONDS)
        return Job(start - begin, time.monotonic() - start, reused, Outcome.REFUSED, error=str(error))
    return await_end(handle, start, begin=begin, reused=reused, limit=limit)


def await_end(handle: GenerationHandle, start: float, *, begin: float, reused: bool, limit: float) -> Job:
    """Waits for the end of an accepted job; the arguments are those of `run_one`."""
    error = ""
    try:
        generation = handle.result(timeout=limit, patience=limit).generation
        outcome, hit = Outcome.SUCCEEDED, generation.donor is not None
        warned = bool(generation.warnings)
    except GenerationError as failure:
        outcome, hit, warned, error = Outcome.FAILED, False, False, str(failure)
    except ChorusError as fault:
        outcome, hit, warned, error = Outcome.LOST, False, False, str(fault)
    return Job(start - begin, time.monotonic() - start, reused, outcome, hit, warned, error)


def run_alternating(client: ChorusClient, prompts: Sequence[str], seconds: float) -> list[Job]:
    """Runs jobs one after another for some seconds, by turns without and with the cache."""
    begin = time.monotonic()
    jobs: list[Job] = []
    while time.monotonic() - begin < seconds:
        prompt = prompts[len(jobs) // 2 % len(prompts)]
        # The spacing makes the text new to the embedder's memory, as it is in a new request.
        text = prompt.replace(" ", " " * (2 + len(jobs) % 7), 1)
        jobs.append(run_one(client, text, reused=len(jobs) % 2 == 1, begin=begin, limit=120.0))
    return jobs


def run_steady(
    client: ChorusClient, prompts: Sequence[str], seconds: float, interval: float, limit: float
) -> list[Job]:
    """Submits a job at each interval for some seconds, whether or not the earlier ones have ended.

    Args:
        limit: Upper bound on the time from the last submission to the end of every job, in seconds.
    """
    begin = time.monotonic()
    with ThreadPoolExecutor(max_workers=int(seconds / interval) + 1) as pool:
        running: list[Future[Job]] = []
        while (passed := time.monotonic() - begin) < seconds:
            prompt = prompts[len(running) % len(prompts)]
            bound = seconds - passed + limit
            running.append(pool.submit(run_one, client, prompt, reused=True, begin=begin, limit=bound))
            time.sleep(max(0.0, len(running) * interval - (time.monotonic() - begin)))
        return [job.result() for job in running]


def measure_recovery(client: ChorusClient, prompt: str, *, needs_hit: bool, limit: float = 120.0) -> float:
    """Returns the seconds until a job succeeds, and if `needs_hit` until one uses a donor.

    Raises SystemExit after `limit` seconds.
    """
    begin = time.monotonic()
    number = 0
    while (passed := time.monotonic() - begin) < limit:
        number += 1
        text = prompt.replace(" ", " " * (2 + number % 7), 1)
        job = run_one(client, text, reused=True, begin=begin, limit=limit - passed)
        if job.outcome is Outcome.SUCCEEDED and (job.hit or not needs_hit):
            return time.monotonic() - begin
    raise SystemExit(f"no recovery within {limit:g} s")


def compare_tails(jobs: Sequence[Job], percentile: float = 95.0) -> Figure | None:
    """Computes how much later jobs with the cache arrive than those without, at a percentile, in ms.

    The interval is a bootstrap over both groups. Counts succeeded jobs only; None without some of each.
    """
    groups = [
        np.array([job.seconds for job in jobs if job.reused == reused and job.outcome is Outcome.SUCCEEDED])
        for reused in (False, True)
    ]
    if not all(len(group) for group in groups):
        return None
    rng = np.random.default_rng(0)
    value = [float(np.percentile(group, percentile)) for group in groups]
    draws = [
        np.percentile(group[rng.integers(len(group), size=(_RESAMPLES, len(group)))], percentile, axis=1)
        for group in groups
    ]
    low, high = np.percentile(draws[1] - draws[0], (2.5, 97.5))
    return Figure(1000 * (value[1] - value[0]), "ms", len(groups[1]), (1000 * float(low), 1000 * float(high)))
