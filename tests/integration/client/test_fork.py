"""Verifies that a client is refused at once in a forked process, and that the parent's is not harmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client.fakes import FakeDeployment, deployment_in_thread
from tests.processes import ROOT

pytestmark = [
    pytest.mark.fault("fork"),
    pytest.mark.skipif(sys.platform == "win32", reason="has no fork"),
]


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


def run(case: str, target: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.client.forked", case, target],
        cwd=ROOT,
        # gRPC's own fork handlers crash a child now and then if another thread is in gRPC at the time.
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", ["sync", "async"])
def test_inherited_client_is_refused_at_once(case: str, deployment: FakeDeployment) -> None:
    *outcomes, child, parent = run(case, deployment.target)
    for outcome in outcomes:
        if "close" in outcome["action"]:
            assert outcome["outcome"] == "returned", outcome
        else:
            assert outcome["outcome"] == "ForkedClient", outcome
            assert "create it in the process that uses it" in outcome["message"]
            assert "spawn" in outcome["message"]
    assert child == {"child": 0}
    assert parent["parent"] == ["gen-1"], "the parent's client still works"


@pytest.mark.parametrize("case", ["new-while-open", "new-after-close"])
def test_new_client_is_refused_in_a_child_of_a_process_that_used_one(
    case: str, deployment: FakeDeployment
) -> None:
    created, child = run(case, deployment.target)
    assert created["outcome"] == "ForkedClient"
    assert "spawn" in created["message"]
    assert child == {"child": 0}


def test_new_client_works_in_a_child_of_a_process_that_used_none(deployment: FakeDeployment) -> None:
    created, child = run("new-in-child", deployment.target)
    assert created == {"action": "create", "outcome": "returned"}
    assert child == {"child": 0}


def test_child_that_ends_does_not_wait_for_an_inherited_client(deployment: FakeDeployment) -> None:
    assert run("exit", deployment.target) == [{"child": 7}]
