"""The body of a webhook: an event in the form of OpenAI's webhooks."""

from __future__ import annotations

import json

from services.scheduler.jobs.outbox import Delivery


def make_event_id(job_id: str) -> str:
    """Returns the id of the event about the end of a job, which ends once: the same for every attempt."""
    return f"evt_{job_id}"


def make_body(delivery: Delivery) -> bytes:
    """Returns the JSON body of a delivery, the same for every attempt."""
    event = {
        "id": make_event_id(delivery.job_id),
        "object": "event",
        "created_at": int(delivery.created),
        "type": delivery.type,
        "data": {"id": f"video_{delivery.job_id}"},
    }
    return json.dumps(event, separators=(",", ":")).encode()
