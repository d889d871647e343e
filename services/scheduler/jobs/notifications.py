"""Notifications of the other schedulers that share a PostgreSQL database: jobs that they changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import psycopg
from sqlalchemy.engine import URL

from services.runtime.logs import get_logger

log = get_logger("notifications")

# Channel on which schedulers notify each other.
CHANNEL: Final = "chorus_jobs"
_CONNECT_SECONDS: Final = 5
_PAUSE_SECONDS: Final = 1.0


def format_notification(scheduler_id: str, job_id: str) -> str:
    """Returns the payload of a notification: who changed which job."""
    return f"{scheduler_id} {job_id}"


async def listen(
    url: URL, scheduler_id: str, on_change: Callable[[str], None], on_gap: Callable[[], None]
) -> None:
    """Forwards the notifications of other schedulers until it is cancelled; connects again after a fault.

    Args:
        on_change: receives the id of each job that another scheduler changed.
        on_gap: called after each connection: changes before it were not notified.
    """
    conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                conninfo,
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name="chorus-scheduler",
            )
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                on_gap()
                async for notification in connection.notifies():
                    sender, _, job_id = notification.payload.partition(" ")
                    if sender != scheduler_id:
                        on_change(job_id)
        except psycopg.Error as error:
            log.warning("notifications of other schedulers interrupted", error=str(error).strip())
        await asyncio.sleep(_PAUSE_SECONDS)
