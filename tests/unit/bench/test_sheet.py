"""Tests of the quickstart demo's pure parts: prompts, figures, contact sheet, result file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from chorus.scheduler.v1.scheduler_pb2 import Generation
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import results
from bench.quickstart import run
from bench.quickstart.sheet import CELL, GAP, HEAD, MARGIN, SheetRow, contact_sheet, sample_frames
from evaluation.timing import TimedGeneration


def mp4(colours: list[tuple[int, int, int]]) -> bytes:
    """Encodes a video with one frame per colour."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < 30 for a, b in zip(pixel, colour, strict=True))


def test_sampled_frames_are_evenly_spaced_with_first_and_last() -> None:
    images = sample_frames(mp4([RED, BLUE, BLUE, GREEN, BLUE, BLUE, RED]), 3)
    pixels = [image.getpixel((32, 32)) for image in images]
    assert near(pixels[0], RED)
    assert near(pixels[1], GREEN)
    assert near(pixels[2], RED)
    assert len(sample_frames(mp4([RED, RED]), 4)) == 2


def test_sheet_shows_reused_and_full_frames_of_every_row() -> None:
    rows = [
        SheetRow(
            "a long prompt " * 12,
            hit,
            "hit 0.912, 2 of 4 steps",
            "donor: x" * 40,
            mp4([RED] * 4),
            mp4([BLUE] * 4),
        )
        for hit in (True, False)
    ]
    sheet = contact_sheet(rows, "title")
    assert sheet.height == 2 * MARGIN + 2 * HEAD + 2 * (CELL + 2 * GAP)
    for number in range(2):
        middle = MARGIN + 2 * HEAD + number * (CELL + 2 * GAP) + CELL // 2
        colours = [sheet.getpixel((x, middle)) for x in range(sheet.width)]
        assert sum(near(pixel, RED) for pixel in colours) > 3.9 * CELL
        assert sum(near(pixel, BLUE) for pixel in colours) > 3.9 * CELL


def build_row(seconds: float, full: float, hit: bool) -> run.Row:
    generation = Generation(generation_id="g", steps_run=1)
    if hit:
        generation.donor.score = 0.9
    return run.Row("x", TimedGeneration(Generation(), b"", full), TimedGeneration(generation, b"", seconds))


def test_figures_separate_hits_misses_and_full_runs() -> None:
    rows = [
        build_row(1.0, 2.0, True),
        build_row(1.2, 2.4, True),
        build_row(1.1, 3.3, True),
        build_row(2.5, 2.0, False),
    ]
    figures = run.build_figures(rows, 60.0, 40.0)
    assert figures["hit_seconds_p50"].value == 1.1
    assert figures["hit_seconds_p50"].n == 3
    assert figures["miss_seconds_p50"] == results.Figure(2.5, "s", 1, None)
    assert figures["full_seconds_p50"].n == 4
    assert figures["hit_speedup_p50"].value == 2.0
    assert figures["run_total_seconds"].value == 100.0
    assert figures["install_seconds"].value == 60.0
    assert "hit_seconds_p50" not in run.build_figures(rows[3:], None, 1.0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=15))
def test_interval_contains_the_median_and_lies_within_the_values(values: list[float]) -> None:
    figure = results.median(values, "s")
    assert figure.ci95 is not None
    low, high = figure.ci95
    assert min(values) <= low <= figure.value <= high <= max(values)


def test_result_file_records_command_commit_hardware_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    results.write(path, "make run", {"x_seconds": results.single(1.23456, "s")})
    report = json.loads(path.read_text())
    assert list(report) == ["command", "commit", "hardware", "versions", "figures"]
    assert report["figures"] == {"x_seconds": {"value": 1.2346, "unit": "s", "n": 1, "ci95": None}}
    assert report["hardware"]["cores"] >= 1
    assert "grpcio" in report["versions"]


def test_demo_prompts_include_exact_repetitions() -> None:
    prompts = run.read_prompts(run.PROMPTS)
    assert 10 <= len(prompts) <= 16
    assert len(set(prompts)) < len(prompts)  # some are repeated word for word


@pytest.mark.parametrize(
    ("prompt", "name"), [("A  Red, red—circle!", "a-red-red-circle"), ("x" * 90, "x" * 48)]
)
def test_slug_is_made_of_the_first_words(prompt: str, name: str) -> None:
    assert run.slug(prompt) == name
