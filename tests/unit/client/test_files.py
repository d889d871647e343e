"""Verifies files of the client: atomic writes, and the prompts that a prompt file holds."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from chorus_cli.prompt_files import read_prompts
from chorus_client.files import write_atomically
from chorus_rpc.errors import ChorusError


def test_file_is_replaced_and_no_part_remains(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    assert write_atomically(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_file_behind_a_symbolic_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    link, path = tmp_path / "link.mp4", tmp_path / "elsewhere" / "video.mp4"
    path.parent.mkdir()
    link.symlink_to(path)
    for data in (b"first", b"second"):
        write_atomically(link, data)
        assert link.is_symlink()
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing/out.mp4", "folder"])
def test_error_names_the_path_and_no_part_remains(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r".") as failed:
        write_atomically(tmp_path / name, b"new")
    assert failed.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    write_atomically(path, b"video")
    assert stat.S_ISFIFO(path.stat().st_mode)
    reader.join(10)
    assert read == [b"video"]


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"\xef\xbb\xbfa red circle\n", ["a red circle"]),
        (b"\xef\xbb\xbf# comment\na red circle\n", ["a red circle"]),
        (b"one\r\n\r\n two \r\n", ["one", "two"]),
        (b"a red\xe2\x80\xa8circle\na\x0cb", ["a red\u2028circle", "a\x0cb"]),
    ],
)
def test_newlines_alone_separate_prompts(content: bytes, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(str(path)) == prompts


def test_closed_stdin_holds_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ChorusError, match="holds no prompt"):
        read_prompts("-")
