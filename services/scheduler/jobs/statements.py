"""Statements of the job store, each to be run inside an open transaction.

Times are Unix seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

from chorus.scheduler.v1 import scheduler_pb2 as pb
from chorus_rpc.limits import MAX_OUTPUTS
from sqlalchemy import (
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from services.scheduler.jobs import states
from services.scheduler.jobs.deadline import make_timestamp, to_unix_seconds
from services.scheduler.jobs.job_filter import find_decision, find_donor
from services.scheduler.jobs.ordering import Ordering
from services.scheduler.jobs.outbox_statements import add_delivery
from services.scheduler.jobs.placing import Shares, find_order_key, read_shares, read_wait
from services.scheduler.jobs.rows import JOB_COLUMNS, WAITING, Transaction, database_time, parse_job
from services.scheduler.jobs.search import fold_text
from services.scheduler.jobs.states import ENDED, IN_QUEUE, UNFINISHED, State
from services.scheduler.jobs.store import (
    ANY_OWNER,
    Job,
    NewJob,
    QueueFull,
    Submission,
    TenantLimitReached,
    TooLate,
)
from services.scheduler.jobs.tables import documents, events, jobs, labels, schedulers

# Number of the lock that serialises acceptance, so that the queue keeps its limit and numbers their order.
_SUBMIT_LOCK: Final = 7_400_002
# Number of the lock that serialises claims, so that no tenant exceeds its number of runs.
_CLAIM_LOCK: Final = 7_400_003
# Time after which the row of a scheduler whose lease has ended is removed, in seconds.
_FORGET_LEASE_SECONDS: Final = 86_400.0

# Name of the document with the id of the database.
_DATABASE_ID: Final = "database_id"

# Statements that every job needs are built once: building one takes longer than most take to run.
_FIND_BY_ID: Final = select(*JOB_COLUMNS).where(jobs.c.id == bindparam("job_id"))
# Not ordered: for the order SQLite reads all jobs of the tenant.
_FIND_BY_REQUEST: Final = select(*JOB_COLUMNS).where(
    jobs.c.tenant == bindparam("tenant"), jobs.c.request_id.in_(bindparam("request_ids", expanding=True))
)
_FIND_KNOWN: Final = select(jobs.c.id).where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))
_COUNT_BEFORE: Final = select(func.count()).where(WAITING, jobs.c.queue_key <= bindparam("order_key"))
_COUNT_UNFINISHED: Final = select(func.count()).where(
    jobs.c.tenant == bindparam("tenant"), jobs.c.state.in_(sorted(state.value for state in UNFINISHED))
)
_INSERT_JOB: Final = insert(jobs).returning(jobs.c.number)
_INSERT_EVENT: Final = insert(events)
_INSERT_LABEL: Final = insert(labels)
_SELECT_FOR_CHANGE: Final = (
    select(*JOB_COLUMNS, jobs.c.owner, jobs.c.change, jobs.c.order_key, jobs.c.announced)
    .where(jobs.c.id == bindparam("job_id"))
    .with_for_update()
)
_CHANGE: Final = update(jobs).where(jobs.c.number == bindparam("job_number"))
_CLAIM: Final = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), WAITING)
    .values(owner=bindparam("new_owner"), queue_key=None)
    .returning(*JOB_COLUMNS)
)
_owned: Final = jobs.alias()
_CLAIM_WITHIN_LIMIT: Final = _CLAIM.where(
    select(func.count())
    .select_from(_owned)
    # An expression: for the column itself SQLite reads all jobs of the tenant.
    .where(_owned.c.owner.is_not(None), _owned.c.tenant.concat("") == jobs.c.tenant)
    .scalar_subquery()
    < bindparam("tenant_limit")
)
_LIST_EVENTS: Final = (
    select(events.c.event)
    .where(
        events.c.number == select(jobs.c.number).where(jobs.c.id == bindparam("job_id")).scalar_subquery(),
        events.c.sequence > bindparam("after"),
    )
    .order_by(events.c.sequence)
    .limit(bindparam("count"))
)


def submit(
    transaction: Transaction,
    outputs: Sequence[NewJob],
    queue_limit: int,
    tenant_limit: int,
    least_seconds: float | None,
    now: float,
    ordering: Ordering,
) -> Submission:
    connection = transaction.connection
    if transaction.on_server:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_SUBMIT_LOCK})"))
    known = find_by_request(transaction, outputs[0].tenant, outputs[0].request_id)
    if known:
        return Submission(known, False, {})
    shares = read_shares(connection, outputs[0].tenant, outputs[0].priority)
    if shares.waiting + len(outputs) > queue_limit:
        raise QueueFull
    if tenant_limit:
        unfinished = connection.execute(_COUNT_UNFINISHED, {"tenant": outputs[0].tenant}).scalar_one()
        if unfinished + len(outputs) > tenant_limit:
            raise TenantLimitReached
    if least_seconds is not None:
        wait = read_wait(connection, shares, least_seconds, now, ordering, at_least=True)
        if now + wait + least_seconds > outputs[0].deadline:
            raise TooLate(wait)
    accepted, positions = [], {}
    for new in outputs:
        job, positions[new.job_id] = _accept(transaction, new, shares, now, ordering)
        accepted.append(job)
        shares = shares.add(new.work)
    return Submission(accepted, True, positions)


def _accept(
    transaction: Transaction, new: NewJob, shares: Shares, now: float, ordering: Ordering
) -> tuple[Job, int]:
    """Adds a job to the queue; returns it with its position."""
    connection = transaction.connection
    order_key = find_order_key(connection, shares, new.work, now, ordering)
    before = connection.execute(_COUNT_BEFORE, {"order_key": order_key}).scalar_one()
    generation = pb.Generation(
        generation_id=new.job_id,
        request_id=new.request_id,
        spec=new.spec,
        state=pb.GENERATION_STATE_QUEUED,
        create_time=make_timestamp(now),
        trace_id=new.trace_id,
        seed_chosen=new.seed_chosen,
        output_index=new.output_index,
        output_count=new.output_count,
    )
    event = pb.GenerationEvent(
        sequence=1, time=generation.create_time, queued=pb.QueuedEvent(queue_position=before + 1)
    )
    states.apply(generation, event)
    number = connection.execute(
        _INSERT_JOB,
        {
            "id": new.job_id,
            "tenant": new.tenant,
            "request_id": _make_row_request_id(new.request_id, new.output_index),
            "body_digest": new.body_digest,
            "state": State.QUEUED.value,
            "deadline": new.deadline,
            "traceparent": new.traceparent,
            "announced": before + 1,
            "generation": generation.SerializeToString(),
            # The time that clients see, so that a search by it finds exactly this job.
            "created": to_unix_seconds(generation.create_time),
            "priority": new.priority.value,
            "work": new.work,
            "backlog": shares.backlog,
            "order_key": order_key,
            "queue_key": order_key,
            "prompt_folded": fold_text(new.spec.prompt),
            "model_id": new.spec.model_id,
        },
    ).scalar_one()
    if new.spec.labels:
        rows = [
            {"number": number, "tenant": new.tenant, "key": key, "value": value}
            for key, value in new.spec.labels.items()
        ]
        connection.execute(_INSERT_LABEL, rows)
    _append(transaction, number, event)
    transaction.changed.append(new.job_id)
    job = Job(new.job_id, number, new.tenant, new.body_digest, State.QUEUED, new.traceparent, 0, generation)
    return job, before + 1


def _make_row_request_id(request_id: str, output_index: int) -> str:
    """Returns the request_id of an output's row, which is unique within the tenant.

    A client's request_id has no "#", so it cannot be that of another output.
    """
    return request_id if output_index == 1 else f"{request_id}#{output_index}"


def advance(
    transaction: Transaction,
    job_id: str,
    expect: Collection[State],
    new_events: Sequence[pb.GenerationEvent],
    owner: str | None,
    crashed: bool,
    change: str,
    now: float,
) -> Job | None:
    connection = transaction.connection
    row = connection.execute(_SELECT_FOR_CHANGE, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    job = parse_job(row[: len(JOB_COLUMNS)])
    if row.change == change:
        return job
    if job.state not in expect or owner not in (ANY_OWNER, row.owner):
        return None
    generation, announced = job.generation, row.announced
    for sequence, content in enumerate(new_events, generation.last_sequence + 1):
        event = pb.GenerationEvent()
        event.CopyFrom(content)
        event.sequence = sequence
        event.time.CopyFrom(make_timestamp(now))
        states.apply(generation, event)
        if event.HasField("succeeded"):
            event.succeeded.timings.CopyFrom(generation.timings)
        _append(transaction, job.number, event)
        if event.HasField("queued"):
            announced = event.queued.queue_position
    state = State(generation.state)
    crashes = job.crashes + int(crashed)
    values: dict[str, Any] = {
        "state": state.value,
        "generation": generation.SerializeToString(),
        "crashes": crashes,
        "announced": announced,
        "change": change,
        "decision": find_decision(generation).value,
        "edit": generation.plan.edit,
        "donor": find_donor(generation),
    }
    if state in IN_QUEUE:
        values |= {"owner": None, "queue_key": row.order_key}
    elif state in ENDED:
        values |= {"owner": None, "queue_key": None}
        if job.state not in ENDED:
            values["ended"] = now
    # The only statement that may end a job, and only from the state that was checked above.
    connection.execute(_CHANGE, {"job_number": job.number, **values})
    advanced = Job(
        job_id, job.number, job.tenant, job.body_digest, state, job.traceparent, crashes, generation
    )
    if new_events:
        transaction.changed.append(job_id)
    if state in ENDED and job.state not in ENDED:
        transaction.ended.append(advanced)
        add_delivery(transaction, advanced)
    return advanced


def claim(transaction: Transaction, job_id: str, owner: str, tenant_limit: int) -> Job | None:
    connection = transaction.connection
    parameters = {"job_id": job_id, "new_owner": owner}
    if not tenant_limit:
        claimed = connection.execute(_CLAIM, parameters).one_or_none()
    else:
        if transaction.on_server:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_CLAIM_LOCK})"))
        claimed = connection.execute(
            _CLAIM_WITHIN_LIMIT, {**parameters, "tenant_limit": tenant_limit}
        ).one_or_none()
    return None if claimed is None else parse_job(claimed)


def keep_lease(transaction: Transaction, scheduler_id: str, seconds: float) -> None:
    now = database_time(transaction.on_server)
    connection = transaction.connection
    extended = connection.execute(
        update(schedulers).where(schedulers.c.id == scheduler_id).values(lease_until=now + seconds)
    )
    if extended.rowcount == 0:
        connection.execute(insert(schedulers).values(id=scheduler_id, lease_until=now + seconds))
    connection.execute(delete(schedulers).where(schedulers.c.lease_until < now - _FORGET_LEASE_SECONDS))


def end_lease(transaction: Transaction, scheduler_id: str) -> None:
    transaction.connection.execute(delete(schedulers).where(schedulers.c.id == scheduler_id))


def take_over(transaction: Transaction, scheduler_id: str) -> None:
    """Ends every other lease, and gives this scheduler one without end."""
    transaction.connection.execute(delete(schedulers))
    transaction.connection.execute(insert(schedulers).values(id=scheduler_id, lease_until=math.inf))


def _append(transaction: Transaction, number: int, event: pb.GenerationEvent) -> None:
    transaction.connection.execute(
        _INSERT_EVENT,
        {"number": number, "sequence": event.sequence, "event": event.SerializeToString()},
    )


def find_by_id(transaction: Transaction, job_id: str) -> Job | None:
    row = transaction.connection.execute(_FIND_BY_ID, {"job_id": job_id}).one_or_none()
    return None if row is None else parse_job(row)


def find_by_request(transaction: Transaction, tenant: str, request_id: str) -> list[Job]:
    request_ids = [_make_row_request_id(request_id, index) for index in range(1, MAX_OUTPUTS + 1)]
    rows = transaction.connection.execute(_FIND_BY_REQUEST, {"tenant": tenant, "request_ids": request_ids})
    return sorted((parse_job(row) for row in rows), key=lambda job: job.number)


def list_events(transaction: Transaction, job_id: str, after: int, limit: int) -> list[pb.GenerationEvent]:
    rows = transaction.connection.execute(_LIST_EVENTS, {"job_id": job_id, "after": after, "count": limit})
    return [pb.GenerationEvent.FromString(event) for (event,) in rows]


def list_surplus(transaction: Transaction, keep: int, ended_before: float, limit: int) -> list[str]:
    # The newest that is not kept by count; it and what was accepted before it go.
    newest = (
        select(jobs.c.number)
        .where(jobs.c.ended.is_not(None))
        .order_by(jobs.c.number.desc())
        .offset(keep)
        .limit(1)
        .scalar_subquery()
    )
    rows = transaction.connection.execute(
        select(jobs.c.id)
        .where(jobs.c.ended.is_not(None), or_(jobs.c.number <= newest, jobs.c.ended < ended_before))
        .order_by(jobs.c.number)
        .limit(limit)
    )
    return [job_id for (job_id,) in rows]


def forget(transaction: Transaction, job_ids: Sequence[str]) -> None:
    transaction.connection.execute(delete(jobs).where(jobs.c.id.in_(job_ids), jobs.c.ended.is_not(None)))
    transaction.changed += job_ids


def save_document(transaction: Transaction, name: str, data: bytes) -> None:
    replaced = transaction.connection.execute(
        update(documents).where(documents.c.name == name).values(data=data)
    )
    if replaced.rowcount == 0:
        transaction.connection.execute(insert(documents).values(name=name, data=data))


def load_document(transaction: Transaction, name: str) -> bytes:
    data = transaction.connection.execute(
        select(documents.c.data).where(documents.c.name == name)
    ).scalar_one_or_none()
    return b"" if data is None else bytes(data)


def find_known(transaction: Transaction, job_ids: Collection[str]) -> set[str]:
    return set(transaction.connection.execute(_FIND_KNOWN, {"job_ids": list(job_ids)}).scalars())


def read_or_create_id(transaction: Transaction, new_id: str) -> str:
    """Returns the id of the database, `new_id` if it has none yet."""
    insert_here = postgresql.insert if transaction.on_server else sqlite.insert
    created = insert_here(documents).values(name=_DATABASE_ID, data=new_id.encode())
    transaction.connection.execute(created.on_conflict_do_nothing())
    return load_document(transaction, _DATABASE_ID).decode()
