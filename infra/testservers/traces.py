"""Phoenix, a trace viewer, from its pinned Python package: receives OTLP, serves a web page and REST API."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from infra.testservers import command as commands
from infra.testservers.install import install_python_program
from infra.testservers.main import HOME
from infra.testservers.processes import Processes, answers, find_free_port

REQUIREMENT = "arize-phoenix==20.26.1"
READY_SECONDS = 180
PROJECT = "chorus"


def main(command: Sequence[str]) -> int:
    """Runs the command with its traces sent to Phoenix; without one, serves until Ctrl-C."""
    return commands.run_program(_serve, command)


def _serve(command: Sequence[str]) -> int:
    home = HOME.with_name("phoenix")
    with (
        commands.exclusive(home),
        tempfile.TemporaryDirectory(prefix="chorus-") as state,
        Processes(home) as processes,
    ):
        _print("starting; the first start installs it (855 MB, about two minutes)")
        program = install_python_program(REQUIREMENT, "phoenix", home, home / "install.log")
        port, otlp = find_free_port(), find_free_port()
        page = f"http://127.0.0.1:{port}"
        server = processes.start(
            "phoenix",
            [program, "serve"],
            env={
                "PHOENIX_HOST": "127.0.0.1",
                "PHOENIX_PORT": str(port),
                "PHOENIX_GRPC_PORT": str(otlp),
                "PHOENIX_WORKING_DIR": state,
                "PHOENIX_TELEMETRY_ENABLED": "false",
                "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            },
        )
        server.wait_until(lambda: answers(f"{page}/readyz"), READY_SECONDS)
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp}",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",
        }
        _print(f"traces are shown at {page}")
        if command:
            return commands.run(command, {**variables, "CHORUS_TEST_PHOENIX_URL": page})
        _print("run this in another terminal before `chorus up`; stop with Ctrl-C here:")
        print("\n".join(f"export {name}={value}" for name, value in variables.items()), flush=True)
        return server.child.wait()


def _print(text: str) -> None:
    print(f"phoenix: {text}", file=sys.stderr, flush=True)
