"""Figures of clients that people use: the `openai` SDK and LiteLLM, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench import results
from bench.results import Figure
from tests.processes import ROOT

_SCRIPTS: Final = ROOT / "tests/integration/gateway"
_KEY: Final = "bench-key"
_INSTALL_SECONDS: Final = 900
_CALL_SECONDS: Final = 300


def measure_openai(url: str, versions: Sequence[str]) -> dict[str, Figure]:
    """Makes every call of the SDK, with the version of this environment and with each of `versions`."""
    found = [_run(sys.executable, "sdk_calls.py", url)]
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            found.append(_run(_install(Path(folder), f"openai=={version}"), "sdk_calls.py", url))
    return {
        **_count("openai_sdk", found),
        "openai_sdk_versions": results.single(len(found), "versions"),
    }


def measure_litellm(url: str, version: str) -> dict[str, Figure]:
    """Makes the calls of LiteLLM's SDK, and those of the `openai` SDK through LiteLLM's proxy."""
    with tempfile.TemporaryDirectory() as folder:
        python = _install(Path(folder), f"litellm[proxy]=={version}")
        return {
            **_count("litellm_sdk", [_run(python, "litellm_calls.py", url, "sdk")]),
            **_count("litellm_proxy", [_run(python, "litellm_calls.py", url, "proxy")]),
        }


def _install(folder: Path, requirement: str) -> str:
    """Installs a package in an environment of its own; returns the interpreter."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], timeout=_INSTALL_SECONDS, check=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", requirement]
    subprocess.run(command, timeout=_INSTALL_SECONDS, check=True)
    return str(python)


def _run(python: str, script: str, url: str, *arguments: str) -> dict[str, Any]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI_"))
    }
    done = subprocess.run(
        [python, str(_SCRIPTS / script), url, _KEY, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_CALL_SECONDS,
        check=True,
        env=environment,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    print(f"{result['versions']}: {len(result['green'])} calls as expected, {result['failed']}")
    return result


def _count(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    return {
        f"{name}_calls_{kind}": results.single(sum(len(each[kind]) for each in found), "calls")
        for kind in ("green", "failed")
    }
