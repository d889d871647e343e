"""Verifies the OpenAPI document: it is the committed one, and no request that it allows is a server error."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.gateway.world import World
from tests.processes import ROOT

PAGE = ROOT / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """Module that writes the document."""
    path = ROOT / "docs" / "make_openapi.py"
    spec = importlib.util.spec_from_file_location("make_openapi", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_document_is_the_generated_one(maker: ModuleType) -> None:
    assert PAGE.read_text() == maker.make_document(), "run python docs/make_openapi.py"


async def test_document_is_served(world: World) -> None:
    served = (await world.http.get("/openapi.json")).json()
    assert served == json.loads(PAGE.read_text())


def test_every_error_has_the_envelope() -> None:
    text = PAGE.read_text()
    assert "HTTPValidationError" not in text
    document = json.loads(text)
    for operations in document["paths"].values():
        for operation in operations.values():
            failures = {code for code in operation["responses"] if code >= "400"}
            assert {"400", "401", "404", "500", "503"} <= failures
            for code in failures:
                schema = operation["responses"][code]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}


@pytest.mark.timeout(600)
async def test_generated_requests_find_no_server_error(world: World, tmp_path: Path) -> None:
    """Runs schemathesis: requests of the document, and requests that violate it."""
    await world.create()
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{world.url}/openapi.json"),
        *("--checks", checks, "--max-examples", "20", "--seed", "1", "--phases", "examples,fuzzing"),
        *("--request-timeout", "20", "--no-color"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 500)
    assert process.returncode == 0, output.decode()[-6_000:]
