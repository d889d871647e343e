"""Verifies that an interrupted calibration continues, and that another one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from chorus_rpc.errors import ChorusError

from calibration.journal import FILE, Journal
from calibration.rows import MeasuredPair, Score

HEAD = {"model_id": "mine", "seed": 1, "sigmas": (1.0, 0.5, 0.0)}
PAIR = MeasuredPair("colour", Score(1.0, 0.0), {"1 full": (Score(0.5, 0.25, 0.01, 1.0), 3.0)})


def test_measurements_are_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new", HEAD)
    journal.add_pair(3, PAIR)
    journal.add_spread(0, {"full": 2.0})
    again = Journal(tmp_path / "new", HEAD)
    assert (again.pairs, again.spreads) == ({3: PAIR}, {0: {"full": 2.0}})


def test_line_that_was_being_written_is_measured_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HEAD)
    journal.add_pair(0, PAIR)
    journal.add_pair(1, PAIR)
    file = tmp_path / FILE
    file.write_text(file.read_text()[:-20])
    again = Journal(tmp_path, HEAD)
    assert list(again.pairs) == [0]
    again.add_pair(1, PAIR)
    assert list(Journal(tmp_path, HEAD).pairs) == [0, 1]


def test_calibration_with_other_options_is_not_continued(tmp_path: Path) -> None:
    Journal(tmp_path, HEAD).add_pair(0, PAIR)
    with pytest.raises(
        ChorusError, match=r"holds a calibration of another model, .* \(seed\): choose another"
    ):
        Journal(tmp_path, {**HEAD, "seed": 2})


def test_damaged_journal_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no JSON\n")
    with pytest.raises(ChorusError, match="is damaged"):
        Journal(tmp_path, HEAD)
