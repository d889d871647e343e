"""Which job is next: first come, first served. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from services.scheduler.jobs.store import QueuedJob


def in_order(tickets: Iterable[QueuedJob]) -> list[QueuedJob]:
    """The order in which jobs are to be started. A job that waits for a service keeps its place."""
    return sorted(tickets, key=lambda ticket: ticket.number)


def choose(ordered: Iterable[QueuedJob], held: Collection[str], free: int) -> list[QueuedJob]:
    """The jobs to start now: at most `free`, in order, passing over those that are held back for a moment."""
    return [ticket for ticket in ordered if ticket.job_id not in held][: max(free, 0)]
