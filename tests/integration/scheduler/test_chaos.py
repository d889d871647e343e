"""Tests that every accepted job ends once while schedulers and services are killed, stopped and cut off.

bench/scheduler_chaos.py does the same for 300 jobs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.integration.scheduler.chaos import FAULTS, run_chaos

JOBS: Final = 60
SEED: Final = int(os.environ.get("CHORUS_TEST_CHAOS_SEED", "14"))


@pytest.mark.timeout(300)
async def test_every_accepted_job_ends_once(tmp_path: Path) -> None:
    outcome = await run_chaos(tmp_path, JOBS, faults=2 * len(FAULTS), seed=SEED)
    assert outcome.accepted == JOBS
    assert set(outcome.faults) == set(FAULTS)
    assert (outcome.lost, outcome.repeated, outcome.gaps) == ([], [], [])
    assert outcome.leases == 0, "no job has an owner, no drained scheduler a lease, and no request two jobs"
