"""Runs under way as donors: a request waits for the end of a run whose latents save more than the wait costs.

A job waits only for a job that runs in this process, whose task ends in any case, and which does not wait
itself: so no wait is without end. It waits once; whatever the run came to, the job then starts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import Final

from chorus.scheduler.v1 import scheduler_pb2 as pb

from services.runtime.logs import get_logger
from services.scheduler.dispatch.preparation import POLICIES, Preparation, Prepared
from services.scheduler.dispatch.throughput import Throughput, expected_seconds
from services.scheduler.jobs.store import Job
from services.scheduler.planning.plans import Donor

log = get_logger("donors_in_flight")

# Upper bound on the runs that one request is compared with.
_MAX_CANDIDATES: Final = 8
# Upper bound on the wait, in seconds for each second of computation that it saves. With 2, the request is
# late by at most as much as it saves: it starts w later and takes s less, so it ends w - s later.
_WAIT_FACTOR: Final = 2.0


class WaitsForDonor(Exception):
    """Ends an attempt at a job that waits for a run under way.

    Args:
        donor_id: id of the job whose run it waits for.
    """

    def __init__(self, donor_id: str) -> None:
        super().__init__(donor_id)
        self.donor_id = donor_id


@dataclass(frozen=True)
class _Run:
    """A full computation under way.

    Attributes:
        space: tenant and identity of its latents.
        end: time at which it is expected to end, in monotonic seconds.
    """

    job: Job
    prepared: Prepared
    space: tuple[str, bytes]
    end: float


class DonorsInFlight:
    """Full computations of this scheduler that will be donors."""

    def __init__(self, preparation: Preparation, throughput: Throughput) -> None:
        self._preparation = preparation
        self._throughput = throughput
        self._runs: dict[str, _Run] = {}

    def begin(self, job: Job, prepared: Prepared) -> None:
        """Notes the start of a run, if its latents will be donors and its duration is known."""
        spec = job.generation.spec
        seconds = self._throughput.full_seconds(spec, prepared.model)
        if not prepared.plan.reuse_steps and not spec.no_store and seconds > 0:
            end = time.monotonic() + seconds
            self._runs[job.job_id] = _Run(job, prepared, _make_space(job, prepared), end)

    def end(self, job_id: str) -> None:
        """Notes the end of a run."""
        self._runs.pop(job_id, None)

    async def require_none_better(self, job: Job, prepared: Prepared) -> None:
        """Raises WaitsForDonor if it pays for a job to wait for a run under way. Otherwise as `prepare`."""
        spec = job.generation.spec
        if POLICIES[spec.reuse] == "off" or spec.HasField("explicit_reuse") or spec.donor_generation_id:
            return
        space = _make_space(job, prepared)
        runs = {each.job.job_id: each for each in self._runs.values() if each.space == space}
        if not runs:
            return
        donors = [_make_donor(each, prepared) for each in runs.values()]
        donors.sort(key=lambda donor: donor.score, reverse=True)
        plan = await self._preparation.plan_with(job, prepared, donors[:_MAX_CANDIDATES])
        if not plan.reuse_steps:
            return
        run = runs[plan.donor.generation_id]
        step = self._throughput.seconds_per_step(spec, prepared.model)
        decode = self._throughput.decode_seconds(spec)
        own, less = (expected_seconds(each, step, decode) for each in (prepared.plan, plan))
        if pays(wait=run.end - time.monotonic(), saved=own - less):
            log.info("waits for a donor in flight", donor_generation_id=run.job.job_id)
            raise WaitsForDonor(run.job.job_id)


def pays(wait: float, saved: float) -> bool:
    """Returns whether a job waits for a donor: if the wait is short for the computation that it saves.

    Args:
        wait: expected seconds until the donor's latents exist.
        saved: expected seconds of computation that they save.
    """
    return saved > 0 and wait <= _WAIT_FACTOR * saved


class WaitingForDonors:
    """Jobs in the queue that wait for a run, or have done so."""

    def __init__(self) -> None:
        self._donors: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._donors)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._donors

    def add(self, job_id: str, donor_id: str) -> None:
        self._donors[job_id] = donor_id

    def find_waiting(self, running: Container[str]) -> set[str]:
        """Returns the jobs whose donors still run."""
        return {job_id for job_id, donor_id in self._donors.items() if donor_id in running}

    def retain(self, queue: Collection[str]) -> None:
        """Forgets jobs that are not among the first of the queue any more."""
        self._donors = {job_id: donor for job_id, donor in self._donors.items() if job_id in queue}


def make_event(donor_id: str) -> pb.GenerationEvent:
    """Returns the event of a job that waits for a donor at the head of the queue."""
    return pb.GenerationEvent(queued=pb.QueuedEvent(queue_position=1, awaited_generation_id=donor_id))


def _make_space(job: Job, prepared: Prepared) -> tuple[str, bytes]:
    return job.tenant, prepared.identity.SerializeToString(deterministic=True)


def _make_donor(run: _Run, prepared: Prepared) -> Donor:
    """Returns a run as the donor that it will be.

    Args:
        prepared: the request that may reuse it.
    """
    spec, plan = run.job.generation.spec, run.prepared.plan
    vectors = run.prepared.encoded.retrieval_vector, prepared.encoded.retrieval_vector
    same_encoder = run.prepared.encoded.retrieval_encoder_id == prepared.encoded.retrieval_encoder_id
    return Donor(
        entry_id="",
        score=sum(a * b for a, b in zip(*vectors, strict=True)) if same_encoder else -1.0,
        steps=frozenset(range(1, plan.total_steps + 1)),
        prompt=spec.prompt,
        generation_id=run.job.job_id,
        side_data=True,
        seed=plan.seed if plan.HasField("seed") else spec.seed,
    )
