"""Prompt files of `chorus generate -f`, and names for the videos of their prompts."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chorus_rpc.errors import invalid

STDIN: Final = "-"
_NAME_CHARACTERS: Final = 48


def read_prompts(file: str) -> list[str]:
    """Reads one prompt a line; blank lines and lines that begin with "#" are skipped. "-" is stdin.

    Raises ChorusError (INVALID_FIELD) if the file holds no prompt or is not UTF-8, OSError if unreadable.
    """
    try:
        text = _read_stdin() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise invalid("file", f"{file}: must be UTF-8: {error}") from None
    # Editors on Windows begin a file with a byte-order mark, which is no part of the first prompt. Only a
    # newline ends a line: splitlines() would also cut a prompt at U+2028 and at form feeds.
    lines = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise invalid("file", f"{file}: holds no prompt; write one a line")
    return prompts


def _read_stdin() -> str:
    return "" if sys.stdin is None else sys.stdin.read()  # None: the shell closed it


def name_videos(prompts: Sequence[str], folder: Path) -> list[Path]:
    """Returns a path in `folder` for each prompt: its number and its words, safe on any file system."""
    digits = max(3, len(str(len(prompts))))
    return [folder / f"{number:0{digits}}{_slug(prompt)}.mp4" for number, prompt in enumerate(prompts, 1)]


def _slug(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.casefold()).strip("-")[:_NAME_CHARACTERS].strip("-")
    return f"-{words}" if words else ""
