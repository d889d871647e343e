"""Verifies the resolution of model locations: paths, and downloads from the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.hub import local_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates a hub cache in the state after the download of one folder at `main`; returns the snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--team--wan"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "text_encoder").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_path_is_relative_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert local_path("weights", tmp_path) == tmp_path / "weights"
    assert local_path(str(tmp_path / "weights"), Path("/elsewhere")) == tmp_path / "weights"
    with pytest.raises(FileNotFoundError, match=r"none: no such file or directory"):
        local_path("none", tmp_path)


@pytest.mark.parametrize("location", ["hf://team/wan", "hf://team/wan@main", f"hf://team/wan@{COMMIT}"])
def test_downloaded_repository_is_found(downloaded: Path, location: str) -> None:
    assert local_path(location) == downloaded
    assert local_path(f"{location}/text_encoder") == downloaded / "text_encoder"


@pytest.mark.parametrize(
    ("location", "remedy"),
    [
        ("hf://team/other", "hf download team/other"),
        ("hf://team/wan@v2", "hf download team/wan --revision v2"),
        ("hf://team/wan/transformer", r"hf download team/wan --include 'transformer\*'"),
    ],
)
def test_missing_repository_names_the_download_command(downloaded: Path, location: str, remedy: str) -> None:
    with pytest.raises(FileNotFoundError, match=remedy + "$"):
        local_path(location)


@pytest.mark.parametrize("location", ["hf://", "hf://wan", "hf://datasets/team/wan"])
def test_other_locations_of_the_hub_are_rejected(location: str) -> None:
    with pytest.raises(ValueError, match=location):
        local_path(location)
