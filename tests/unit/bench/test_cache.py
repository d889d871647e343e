"""Tests of the figures of the cache's measurements, on small examples."""

from __future__ import annotations

import numpy as np
import pytest
import typer

from bench import results
from bench.cache import parse_sizes, select_parts
from bench.cache_fetch import S3_ENDPOINT, choose_lower
from bench.cache_hits import Timings, build_figures, make_fillers
from bench.cache_lookup import compare_ends
from bench.cache_milvus import URI
from bench.cache_rows import label_size, make_entry
from bench.results import Figure
from services.cache.entries import Blob

KNOWN = ["embedded", "milvus", "fetch_s3"]


def test_quantile_has_an_interval_only_if_there_are_enough_values() -> None:
    assert results.quantile(range(367), 0.99, "ms").ci95 is None
    assert results.quantile(range(368), 0.99, "ms").ci95 is not None
    found = results.quantile(list(reversed(range(1000))), 0.99, "ms")
    assert found.value == pytest.approx(989.01)
    assert found.ci95 is not None
    assert found.ci95[0] < found.value < found.ci95[1]


def test_interval_of_a_median_matches_published_ranks() -> None:
    # Tables of the binomial distribution give the ranks 40 and 61 of 100 values.
    assert results.quantile(range(1, 101), 0.5, "ms").ci95 == (40, 61)


def test_interval_of_a_quantile_contains_it_in_19_of_20_samples() -> None:
    rng = np.random.default_rng(0)
    contained = 0
    for _ in range(400):
        interval = results.quantile(rng.uniform(size=1000).tolist(), 0.99, "ms").ci95
        assert interval is not None
        contained += interval[0] <= 0.99 <= interval[1]
    assert contained / 400 >= 0.93


def test_sizes_are_parsed_and_labelled() -> None:
    assert parse_sizes("100,1000,50000") == [100, 1000, 50000]
    assert [label_size(size) for size in (100, 1000, 1500, 50000)] == ["100", "1k", "1500", "50k"]


@pytest.mark.parametrize("text", ["", "ten", "0,10", "10,10", "20,10"])
def test_malformed_sizes_are_rejected(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be"):
        parse_sizes(text)


def test_part_without_its_server_is_left_out_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    monkeypatch.delenv(S3_ENDPOINT, raising=False)
    assert select_parts([], KNOWN) == ["embedded", "milvus"]
    assert capsys.readouterr().out == f"not measured: fetch_s3 needs an S3 server: {S3_ENDPOINT} is not set\n"
    with pytest.raises(typer.BadParameter, match="needs an S3 server"):
        select_parts(["fetch_s3"], KNOWN)
    with pytest.raises(typer.BadParameter, match="unknown part other"):
        select_parts(["other"], KNOWN)


def test_lower_ratio_of_both_sizes_counts() -> None:
    small, large = Figure(0.5, "x", 9), Figure(0.7, "x", 9)
    found = choose_lower({"4mb": large, "12mb": small}, "ratio")
    assert found == {"ratio": small, "ratio_4mb": large, "ratio_12mb": small}


def test_cost_is_compared_between_the_ends() -> None:
    found = compare_ends({"1k": [1.0, 1.0], "10k": [9.0, 9.0], "100k": [1.5, 2.5]}, "lookup")
    assert list(found) == ["lookup_cost_100k_over_1k"]
    assert found["lookup_cost_100k_over_1k"].value == pytest.approx(2.0)
    assert compare_ends({"1k": [1.0]}, "lookup") == {}


def test_speedups_are_compared_for_the_same_targets() -> None:
    timings = {
        100: Timings(hits=[0.1, 0.2], full=[0.4, 0.4], donors=["a", "b"]),
        50_000: Timings(hits=[0.2, 0.4], full=[0.4, 0.4], donors=["a", "c"]),
    }
    found = build_figures(timings, prompts=4)
    assert found["hit_speedup_100"].value == pytest.approx(3.0)
    assert found["hit_speedup_50k"].value == pytest.approx(1.5)
    assert found["hit_speedup_50k_over_100"].value == pytest.approx(0.5)
    assert (found["hit_share"].value, found["hit_same_donor"].value) == (0.5, 0.5)
    with pytest.raises(SystemExit, match="no target was reused"):
        build_figures({100: Timings(), 50_000: Timings()}, prompts=4)


def test_fillers_name_blobs_that_exist_and_half_of_them_share_the_donors_identity() -> None:
    donor, blob = make_entry(7), Blob(1, 0.8, 3, "0" * 64)
    fillers = make_fillers(donor, blob, 10)
    own = [entry for entry in fillers if entry.identity == donor.identity]
    assert len(own) == 5
    assert all(entry.blobs == donor.blobs for entry in own)
    assert all(entry.blobs == (blob,) for entry in fillers if entry not in own)
    assert len({entry.entry_id for entry in [donor, *fillers]}) == 11
