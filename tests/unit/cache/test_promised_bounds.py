"""Verifies that each bound of the cache's API holds at both edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from chorus.cache.v1 import cache_pb2
from chorus_rpc.errors import ChorusError
from chorus_rpc.limits import MAX_AGE_SECONDS, MAX_PROMPT_BYTES
from google.protobuf import duration_pb2

from services.cache.validation import Limits, check_fetch, check_lookup, check_new_entry, check_purge
from tests.contract.samples import fetch, lookup, new_entry

pytestmark = pytest.mark.fault("number-promises")

LIMITS = Limits(prompt=MAX_PROMPT_BYTES, blob=4096, entry=8192)
NAN = math.nan


def vector(size: int, norm: float = 1.0) -> list[float]:
    return [norm] + [0.0] * (size - 1)


def changed(message: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        if isinstance(value, (list, range)):
            del getattr(message, name)[:]
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def schedule(entry: cache_pb2.NewEntry, steps: int) -> cache_pb2.NewEntry:
    """Returns an entry with a schedule of `steps` steps that announces the latents of as many boundaries."""
    del entry.identity.schedule.sigmas[:]
    entry.identity.schedule.sigmas.extend(1 - i / 100 for i in range(100))
    entry.identity.schedule.sigmas.append(0.0)
    return changed(entry, steps=range(1, steps + 1))  # type: ignore[no-any-return]


def entry_check(build: Callable[[Any], Any]) -> Callable[[Any], object]:
    return lambda value: check_new_entry(build(value), LIMITS)


CASES: list[tuple[str, Callable[[Any], object], list[Any], list[Any]]] = [
    ("limit", lambda n: check_lookup(changed(lookup(), limit=n)), [1, 16], [0, 17, 2**32 - 1]),
    ("min_score", lambda x: check_lookup(changed(lookup(), min_score=x)), [-1.0, 1.0], [-1.001, 1.001, NAN]),
    ("vector", lambda n: check_lookup(changed(lookup(), vector=vector(n))), [1, 4096], [4097]),
    (
        "vector",
        lambda x: check_lookup(changed(lookup(), vector=vector(8, x))),
        [0.9991, 1.0009],
        [0.9989, 1.0011, NAN, math.inf],
    ),
    (
        "retrieval_encoder_id",
        lambda n: check_lookup(changed(lookup(), retrieval_encoder_id="x" * n)),
        [1, 512],
        [0, 513],
    ),
    ("vector_dim", lambda n: check_fetch(changed(fetch("a" * 64, 1), vector_dim=n)), [1, 4096], [0, 4097]),
    ("steps", lambda n: check_fetch(changed(fetch("a" * 64, 1), steps=range(1, n + 1))), [1, 64], [0, 65]),
    (
        "older_than",
        lambda s: check_purge(cache_pb2.PurgeRequest(older_than=duration_pb2.Duration(seconds=s)), 0),
        [0, MAX_AGE_SECONDS],
        [-1, MAX_AGE_SECONDS + 1],
    ),
    ("entry.prompt", entry_check(lambda n: new_entry("x" * n)), [1, 8192], [0, 8193]),
    ("entry.seed", entry_check(lambda n: new_entry(seed=n)), [0, 2**32, 2**64 - 1], []),
    (
        "entry.cost_seconds",
        entry_check(lambda x: changed(new_entry(), cost_seconds=x, steps=[1])),
        [0.0, 1e6],
        [-0.001, 1.001e6, NAN],
    ),
    ("entry.steps", entry_check(lambda n: schedule(new_entry(), n)), [1, 64], [0, 65]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "check", "valid", "invalid"), CASES, ids=[case[0] for case in CASES])
def test_bound_holds_at_both_edges(
    field: str, check: Callable[[Any], object], valid: list[Any], invalid: list[Any]
) -> None:
    for value in valid:
        assert field not in violated(check, value), value
    for value in invalid:
        assert field in violated(check, value), value


def violated(check: Callable[[Any], object], value: Any) -> list[str]:
    try:
        check(value)
    except ChorusError as error:
        return [violation.field for violation in error.violations]
    return []


def test_samples_are_valid_except_for_the_value_under_test() -> None:
    check_lookup(lookup())
    check_fetch(fetch("a" * 64, 1))
