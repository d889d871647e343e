"""Journal of a calibration: one JSON line for each measured pair, so that an interrupted run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from chorus_rpc.errors import invalid

from calibration.rows import MeasuredPair, Score

FILE: Final = "journal.jsonl"
# Root mean square distance of one target's videos over seeds, by name of the depth, or "full".
Spread = dict[str, float]


class Journal:
    """Measurements in a folder, by number of the pair.

    Args:
        head: Everything on which the measurements depend. A journal with another head is not continued.

    Raises ChorusError (INVALID_FIELD) if the folder holds another calibration, or a damaged one.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]) -> None:
        self.pairs: dict[int, MeasuredPair] = {}
        self.spreads: dict[int, Spread] = {}
        self._path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True)
        head = json.loads(json.dumps(head))
        lines = self._read()
        if not lines:
            self._append({"head": head})
        elif lines[0].get("head") != head:
            raise invalid(
                "out",
                f"{folder} holds a calibration of another model, or with other options"
                f"{_describe_change(lines[0].get('head'), head)}: choose another folder, or delete this one",
            )
        for line in lines[1:]:
            if "pair" in line:
                self.pairs[line["pair"]] = _parse_pair(line)
            else:
                self.spreads[line["spread"]] = line["distances"]

    def add_pair(self, number: int, pair: MeasuredPair) -> None:
        """Adds a pair durably."""
        self.pairs[number] = pair
        self._append({"pair": number, **asdict(pair)})

    def add_spread(self, number: int, spread: Spread) -> None:
        """Adds the spread of a pair's target durably."""
        self.spreads[number] = spread
        self._append({"spread": number, "distances": spread})

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        text = self._path.read_text("utf-8")
        if text and not text.endswith("\n"):  # a line that was being written when the process ended
            text = text[: text.rfind("\n") + 1]
            self._path.write_text(text, "utf-8")
        try:
            return [json.loads(line) for line in text.splitlines()]
        except ValueError as error:
            raise invalid("out", f"{self._path} is damaged: {error}; delete it to start again") from None

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _parse_pair(line: Mapping[str, Any]) -> MeasuredPair:
    depths = {name: (Score(**score), steps) for name, (score, steps) in line["depths"].items()}
    return MeasuredPair(line["edit"], Score(**line["full"]), depths)


def _describe_change(found: object, wanted: Mapping[str, Any]) -> str:
    """Returns the names of the options that differ, in brackets."""
    if not isinstance(found, Mapping):
        return ""
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return f" ({', '.join(names)})"
