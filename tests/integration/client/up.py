"""`chorus up` as a child process, in a folder of its own and off the default ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.processes import choose_port_variables

CHORUS = (sys.executable, "-m", "chorus_cli")
_STOP_SECONDS = 120


class Up:
    """A running `chorus up --json`; `read` reads its lines until one has the wanted key.

    Args:
        variables: settings of its services; those of this process are not passed on.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("CHORUS_", "OTEL_"))}
        environment |= choose_port_variables() | variables
        self.process = subprocess.Popen(
            [*CHORUS, "up", "--json"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )

    def read(self, key: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            if key in found:
                return dict(found[key])
            assert "error" not in found, found
        raise AssertionError(f"`chorus up` ended without a line {key!r}")

    def chorus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CHORUS, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=300
        )

    def wait_for_entries(self, count: str) -> None:
        """Waits until the cache holds `count` entries: a video is ready before its latents are admitted."""
        end = time.monotonic() + 60
        while json.loads(self.chorus("cache", "stats", "--json").stdout)["cache"]["entries"] != count:
            assert time.monotonic() < end, self.logs()

    def logs(self) -> str:
        """Returns the ends of the logs of the services that handle donors."""
        logs = (
            self.folder / ".chorus" / "logs" / f"{name}.log" for name in ("cache", "denoiser", "scheduler")
        )
        return "\n".join(f"{log.name}:\n{log.read_text()[-3_000:]}" for log in logs)

    def generation(self, prompt: str) -> dict[str, Any]:
        done = self.chorus("generate", prompt, "-o", "again.mp4", "--json")
        assert done.returncode == 0, done.stdout
        return dict(json.loads(done.stdout.splitlines()[-1])["generation"])

    def stop(self) -> None:
        """Ends the services, and waits for them."""
        self.process.terminate()
        self.process.wait(_STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def running_up(folder: Path, **variables: str) -> Iterator[Up]:
    """Runs `chorus up` inside the block; it may still be starting."""
    running = Up(folder, **variables)
    try:
        yield running
    finally:
        running.stop()
