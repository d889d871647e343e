"""Verifies the calls of the clients that people use: the `openai` SDK, and LiteLLM's two forms of a creation.

CHORUS_TEST_OPENAI_PYTHON names the interpreters, separated by colons, of further versions of the SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.gateway.test_endpoints import read_error
from tests.integration.gateway.world import World

SCRIPT = Path(__file__).with_name("sdk_calls.py")
PYTHONS = [sys.executable, *filter(None, os.environ.get("CHORUS_TEST_OPENAI_PYTHON", "").split(":"))]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parents[1].name)
async def test_every_call_of_the_sdk_succeeds(world: World, python: str) -> None:
    world.scheduler.keys = {"sdk-key"}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI_"))
    }
    process = await asyncio.create_subprocess_exec(
        python, str(SCRIPT), world.url, "sdk-key", stdout=asyncio.subprocess.PIPE, env=environment
    )
    output, _ = await asyncio.wait_for(process.communicate(), 100)
    result = json.loads(output)
    assert result["failed"] == {}
    assert len(result["green"]) == 11
    assert world.scheduler.generations == {}, "every video was deleted"
    first = world.scheduler.requests[0].spec
    assert (first.prompt, first.shape.frames) == ("a large red square moving left", 32)


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
