"""Entry point of `chorus`. It loads the command once an interrupt can end it without a traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def main() -> None:
    """Runs the command. While it is loaded and at its end, Ctrl-C has nothing to clean up."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # the shell has it ignored, as in `nohup chorus up &`
        from chorus_cli.main import app

        app(prog_name="chorus")
        return
    signal.signal(signal.SIGINT, _end)
    from chorus_cli.main import app

    signal.signal(signal.SIGINT, handler)
    try:
        app(prog_name="chorus")
    finally:
        signal.signal(signal.SIGINT, _end)


if __name__ == "__main__":
    main()
