"""Judge by a command of the user's."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chorus_rpc.errors import ChorusError, invalid

from calibration.judges.base import Case, Judge
from calibration.rows import Score

SECONDS: Final = 300.0
_REQUIRED: Final = ("alignment", "donor")
_OPTIONAL: Final = ("artefacts", "layout")


class CommandJudge(Judge):
    """Runs a command with the path of the video's mp4 as its last argument.

    Its standard input is `{"prompt", "donor_prompt", "donor_video", "full_video"}`, the latter two paths of
    mp4 files; it prints `{"alignment", "donor"}`, and `artefacts` and `layout` if it measures them: shares
    from 0 to 1 with the meaning of `Score`.
    """

    def __init__(self, command: str) -> None:
        """Raises ChorusError (INVALID_FIELD) for a command that is empty or not well quoted."""
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise invalid("judge", f"command:{command}: {error}") from None
        if not self._command:
            raise invalid("judge", "command: must name a command, such as command:'python judge.py'")
        self.name = f"command: {command}"

    def judge(self, case: Case) -> Score:
        """Raises ChorusError (INVALID_FIELD) if the command fails, or prints something else."""
        with tempfile.TemporaryDirectory() as folder:
            videos = {"shown": case.shown, "donor": case.shown_donor, "full": case.shown_full}
            paths = {name: Path(folder) / f"{name}.mp4" for name in videos}
            for name, video in videos.items():
                paths[name].write_bytes(video.mp4)
            request = {
                "prompt": case.target.prompt,
                "donor_prompt": case.donor.prompt,
                "donor_video": str(paths["donor"]),
                "full_video": str(paths["full"]),
            }
            try:
                done = subprocess.run(
                    [*self._command, str(paths["shown"])],
                    input=json.dumps(request),
                    capture_output=True,
                    text=True,
                    timeout=SECONDS,
                    check=False,
                )
            except (OSError, UnicodeDecodeError) as error:
                raise self._fail(f"cannot be run: {error}") from None
            except subprocess.TimeoutExpired:
                raise self._fail(f"took longer than {SECONDS:g} s") from None
        if done.returncode:
            raise self._fail(f"ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        return self._parse(done.stdout)

    def _parse(self, text: str) -> Score:
        try:
            plain = json.loads(text)
        except ValueError:
            raise self._fail(f"must print one JSON object, not {text.strip()[:200]!r}") from None
        if not isinstance(plain, Mapping) or not set(_REQUIRED) <= plain.keys() <= {*_REQUIRED, *_OPTIONAL}:
            names = f"{' and '.join(_REQUIRED)}, and at most {' and '.join(_OPTIONAL)}"
            raise self._fail(f"must print an object with {names}, not {text.strip()[:200]!r}")
        for name, value in plain.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value <= 1:
                raise self._fail(f"{name} must be 0 to 1, not {value!r}")
        return Score(**{name: float(value) for name, value in plain.items()})

    def _fail(self, reason: str) -> ChorusError:
        return invalid("judge", f"{self.name}: {reason}")
