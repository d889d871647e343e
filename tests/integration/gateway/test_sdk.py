"""Verifies the calls of the clients that people use: the `openai` SDK, and LiteLLM's two forms of a creation.

CHORUS_TEST_OPENAI_PYTHON names the interpreters, separated by colons, of further versions of the SDK, and
CHORUS_TEST_LITELLM_PYTHON those of environments with `litellm[proxy]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway.test_endpoints import read_error
from tests.integration.gateway.world import World


def list_interpreters(variable: str) -> list[str]:
    return [path for path in os.environ.get(variable, "").split(":") if path]


PYTHONS = [sys.executable, *list_interpreters("CHORUS_TEST_OPENAI_PYTHON")]


async def run_calls(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Returns the result of a script of calls, which runs without variables of this environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI_"))
    }
    process = await asyncio.create_subprocess_exec(
        python,
        str(Path(__file__).with_name(script)),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 160)
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parents[1].name)
async def test_every_call_of_the_sdk_succeeds(world: World, python: str) -> None:
    world.scheduler.keys = {"sdk-key"}
    result = await run_calls(python, "sdk_calls.py", world.url, "sdk-key")
    assert result["failed"] == {}
    assert len(result["green"]) == 11
    assert world.scheduler.generations == {}, "every video was deleted"
    first = world.scheduler.requests[0].spec
    assert (first.prompt, first.shape.frames) == ("a large red square moving left", 32)


@pytest.mark.parametrize("form", ["sdk", "proxy"])
@pytest.mark.parametrize("python", list_interpreters("CHORUS_TEST_LITELLM_PYTHON"))
async def test_every_call_of_litellm_succeeds(world: World, python: str, form: str) -> None:
    world.scheduler.keys = {"litellm-key"}
    result = await run_calls(python, "litellm_calls.py", world.url, "litellm-key", form)
    assert result["failed"] == {}


async def test_both_forms_of_litellm_are_read(world: World) -> None:
    """It sends JSON, and a form if there is a file; the content with the id once more as a parameter."""
    headers = {"Authorization": "Bearer sk-1"}
    fields = {"model": "small", "prompt": "a red circle", "seconds": "4", "size": "64x64", "user": "u"}
    created = await world.http.post("/v1/videos", json=fields, headers=headers)
    assert created.status_code == 200, created.text
    assert float(created.json()["seconds"]) > 0
    reference = [("input_reference", ("input_reference.png", b"\x89PNG", "image/png"))]
    refused = await world.http.post("/v1/videos", data=fields, files=reference, headers=headers)
    assert read_error(refused, 400)["param"] == "input_reference"
    form = [(name, (None, value)) for name, value in fields.items()]
    accepted = await world.http.post("/v1/videos", files=form, headers=headers)
    assert accepted.status_code == 200, accepted.text
    assert world.scheduler.requests[0].spec == world.scheduler.requests[1].spec
    identifier = created.json()["id"]
    content = await world.http.get(f"/v1/videos/{identifier}/content", params={"video_id": identifier})
    assert content.status_code == 200
    deleted = await world.http.request("DELETE", f"/v1/videos/{identifier}", json={})
    assert {"id", "object"} <= set(deleted.json())
