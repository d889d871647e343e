"""Metrics of the scheduler: ended generations, the queue, the denoisers, and the webhooks."""

from __future__ import annotations

import time

from chorus.common.v1 import plan_pb2
from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc import semconv
from opentelemetry.metrics import Observation

from services.runtime.metrics import METER, BoundedLabels, create_histogram
from services.scheduler.dispatch.dispatcher import Dispatcher
from services.scheduler.jobs.states import State
from services.scheduler.jobs.store import Job
from services.scheduler.peers.denoiser_pool import DenoiserPool
from services.scheduler.webhooks.outcome import OutcomeKind
from services.scheduler.webhooks.sender import WebhookSender

_MODEL_LABELS = BoundedLabels(100)
_GENERATIONS = METER.create_counter(
    semconv.METRIC_GENERATIONS, "{generation}", "Generations that ended, by state and use of the cache."
)
_GENERATION_SECONDS = create_histogram(
    semconv.METRIC_GENERATION, "Time from the submission of a generation to its video."
)
_WEBHOOK_ATTEMPTS = METER.create_counter(
    semconv.METRIC_WEBHOOK_ATTEMPTS, "{attempt}", "Attempts to send a webhook, by outcome."
)
_WEBHOOK_DELIVERIES = METER.create_counter(
    semconv.METRIC_WEBHOOK_DELIVERIES, "{delivery}", "Webhooks that were delivered or given up."
)
_REPORTS = METER.create_counter(
    semconv.METRIC_REPORTS, "{report}", "Reports about videos, those in place of an earlier one included."
)
# The reasons that decide about a plan alone, before any donor is compared.
_DECISIONS = {
    plan_pb2.PLAN_REASON_CODE_EXACT: "exact",
    plan_pb2.PLAN_REASON_CODE_REUSE_OFF: "off",
    plan_pb2.PLAN_REASON_CODE_CACHE_UNAVAILABLE: "cache_down",
}


def record_end(job: Job) -> None:
    """Counts a job that has just ended."""
    generation = job.generation
    model = _MODEL_LABELS.add(generation.spec.model_id)
    attributes = {semconv.MODEL: model, semconv.DECISION: name_decision(generation)}
    _GENERATIONS.add(1, {**attributes, semconv.STATE: job.state.name.lower()})
    if job.state is State.SUCCEEDED:
        spent = generation.end_time.ToNanoseconds() - generation.create_time.ToNanoseconds()
        _GENERATION_SECONDS.record(max(0.0, spent / 1e9), attributes)


def record_report(generation: pb.Generation) -> None:
    """Counts a report that was stored."""
    name = pb.ReportedProblem.Name(generation.report.problem)
    problem = name.removeprefix("REPORTED_PROBLEM_").lower()
    _REPORTS.add(1, {semconv.PROBLEM: problem, semconv.DECISION: name_decision(generation)})


def name_decision(generation: pb.Generation) -> str:
    """Returns how a generation used the cache: exact, hit, miss, off or cache_down; none without a plan."""
    if not generation.HasField("plan"):
        return "none"
    for reason in generation.plan.reasons:
        if reason.code in _DECISIONS:
            return _DECISIONS[reason.code]
    # A donor that was planned but could not be fetched is a miss.
    return "hit" if generation.HasField("donor") else "miss"


def observe_queue(dispatcher: Dispatcher) -> None:
    """Registers the metrics that are read from a dispatcher whenever they are exported."""
    counter = dispatcher.counter

    def measure_age() -> float:
        created = counter.oldest_created
        return max(0.0, time.time() - created) if created else 0.0

    METER.create_observable_gauge(
        semconv.METRIC_QUEUE_DEPTH,
        [lambda _: [Observation(counter.queued)]],
        "{generation}",
        "Generations that wait for their start.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_QUEUE_WORK,
        [lambda _: [Observation(counter.queued_work)]],
        "s",
        "Expected time on the denoiser of all generations that wait for their start.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_QUEUE_OLDEST,
        [lambda _: [Observation(measure_age())]],
        "s",
        "Time since the submission of the generation at the head of the queue; 0 for an empty queue.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_RUNNING,
        [lambda _: [Observation(dispatcher.running)]],
        "{generation}",
        "Generations that are being worked on.",
    )


def observe_denoisers(denoisers: DenoiserPool) -> None:
    """Registers the metrics that are read from the denoisers whenever they are exported."""
    METER.create_observable_gauge(
        semconv.METRIC_DENOISERS_SERVING,
        [lambda _: [Observation(denoisers.count_ready())]],
        "{denoiser}",
        "Denoisers that can run generations.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_DENOISERS_REFUSED,
        [lambda _: [Observation(denoisers.count_refused())]],
        "{denoiser}",
        "Denoisers that serve a model differently from the others, and are not used for it.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_DENOISER_RUNNING,
        [
            lambda _: [
                Observation(runs, {semconv.DENOISER: address})
                for address, runs in denoisers.count_runs().items()
            ]
        ],
        "{generation}",
        "Generations that run on a denoiser.",
    )


def record_webhook_attempt(outcome: OutcomeKind) -> None:
    """Counts an attempt to send a webhook."""
    _WEBHOOK_ATTEMPTS.add(1, {semconv.OUTCOME: outcome.value})


def record_webhook(delivered: bool) -> None:
    """Counts a webhook that has reached its receiver, or is given up."""
    _WEBHOOK_DELIVERIES.add(1, {semconv.OUTCOME: "delivered" if delivered else "given_up"})


def observe_webhooks(sender: WebhookSender) -> None:
    """Registers the metrics of the outbox, as the sender last read it."""
    METER.create_observable_gauge(
        semconv.METRIC_WEBHOOK_PENDING,
        [lambda _: [Observation(sender.state.pending)]],
        "{delivery}",
        "Webhooks of all schedulers of the database that wait for their receivers.",
    )
    METER.create_observable_gauge(
        semconv.METRIC_WEBHOOK_OLDEST,
        [lambda _: [Observation(sender.state.oldest_age)]],
        "s",
        "Time since the end of the generation of the oldest of them; 0 without any.",
    )
