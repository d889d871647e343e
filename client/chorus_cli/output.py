"""Output of the commands: text for people, JSON lines for programs, and exit statuses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

import typer
from chorus_client import GenerationError
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, reason_name
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

# Meaning of every exit status, as `chorus --help` and docs/cli.md list them.
EXIT_STATUSES: Final = {
    OK: "done",
    FAILED: "the generation or the server failed, or a confirmation was declined",
    BAD_INPUT: "the input is invalid: an option, a file, or an unknown id",
    UNREACHABLE: "nothing answers at the address, or a service that is needed is down",
    INTERRUPTED: "interrupted by Ctrl-C",
    PIPE_CLOSED: "the reader of stdout closed the pipe",
}

_BAD_INPUT: Final = frozenset(
    {
        errors.INVALID_FIELD,
        errors.UNKNOWN_MODEL,
        errors.UNKNOWN_ENCODER,
        errors.REQUEST_ID_REUSED,
        errors.NOT_FOUND,
    }
)
_UNREACHABLE: Final = frozenset({errors.DEPENDENCY_UNAVAILABLE, errors.SHUTTING_DOWN})


class _Console(Console):
    """Console that leaves a closed pipe to `Output.faults` instead of exiting with a status of rich's."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Output:
    """Destination of a command's output. With `as_json`, stdout carries only one JSON object a line.

    Messages are written in protobuf's JSON form with the names of the contract: 64-bit integers are strings.

    Attributes:
        console: writes to stdout.
        notes: writes to stderr.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _Console(highlight=False, markup=False, emoji=False)
        self.notes = _Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def is_interactive(self) -> bool:
        """Whether a question can be asked: text output, with a terminal to read from and to write to."""
        # A stream that the shell closed is None.
        return not self.as_json and all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))

    def json_line(self, **fields: Any) -> None:
        """Writes one JSON line with `as_json`, else nothing. Messages become objects."""
        if self.as_json:
            plain = {
                key: as_dict(value) if isinstance(value, Message) else value for key, value in fields.items()
            }
            _write_line(json.dumps(plain, ensure_ascii=True))

    def print(self, content: RenderableType, **fields: Any) -> None:
        """Writes a result to stdout: `content` as text, or `fields` as a JSON line."""
        if self.as_json:
            self.json_line(**fields)
        elif isinstance(content, str):
            _write_line(content)  # not by rich, which expands tabs
        else:
            self.console.print(content)

    def status(self, text: str) -> None:
        """Writes a line about progress to stderr; nothing with `as_json`."""
        if not self.as_json:
            self.notes.print(text, soft_wrap=True)

    def error_record(self, reason: str, message: str, **facts: Any) -> None:
        """Writes the JSON line of an error. `reason` is one of the contract's or of the command's own."""
        self.json_line(error={"reason": reason, "message": message, **facts})

    def error(self, error: ChorusError) -> None:
        """Writes an error: one line on stderr for each violation, or one JSON line."""
        self.error_record(
            reason_name(error.reason),
            error.message,
            metadata=error.metadata,
            violations=[{"field": v.field, "description": v.description} for v in error.violations],
        )
        lines = [f"{v.field}: {v.description}" for v in error.violations] or [error.message]
        for line in lines:
            self.status(f"error: {one_line(line)}")

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Converts the errors of a command to a line and an exit status, never a traceback."""
        try:
            with ending_at_closed_pipe(), self._reported_errors():
                yield
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    @contextmanager
    def _reported_errors(self) -> Iterator[None]:
        try:
            yield
        except ChorusError as error:
            raise self.stop(error) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            self.status(f"error: {error}")
            with suppress(OSError):  # stdout itself may be the file that cannot be written
                self.error_record("LOCAL_FILE", str(error))
            raise typer.Exit(BAD_INPUT) from None

    def stop(self, error: ChorusError) -> typer.Exit:
        """Prints the error and returns the exception that ends the command with its status."""
        self.error(error)
        return typer.Exit(exit_code(error))

    def confirm(self, question: str) -> None:
        """Asks a yes-or-no question on stderr; the default is no. A no ends the command with FAILED."""
        if not typer.confirm(question, default=False, err=True):
            raise typer.Exit(FAILED)


class LastingOutput(Output):
    """Output of a command that continues without a reader: what cannot be written is dropped."""

    def json_line(self, **fields: Any) -> None:
        with _drop_unwritable(sys.stdout):
            super().json_line(**fields)

    def print(self, content: RenderableType, **fields: Any) -> None:
        with _drop_unwritable(sys.stdout):
            super().print(content, **fields)

    def status(self, text: str) -> None:
        with _drop_unwritable(sys.stderr):
            super().status(text)


@contextmanager
def _drop_unwritable(stream: TextIO) -> Iterator[None]:
    """Ignores that a stream cannot be written, for instance on a full disk; discards one without a reader."""
    try:
        yield
    except BrokenPipeError:
        # Later writes, such as the interpreter's flush at exit, must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:
        return


@contextmanager
def ending_at_closed_pipe() -> Iterator[None]:
    """Ends the command with PIPE_CLOSED if the reader of stdout has closed the pipe."""
    try:
        yield
    except BrokenPipeError:
        # Later writes, such as the interpreter's flush at exit, must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None


def _write_line(text: str) -> None:
    """Writes a line to stdout, if it is open. A character that its encoding lacks is written as an escape."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def exit_code(error: ChorusError) -> int:
    """Returns the exit status of an error: FAILED, BAD_INPUT or UNREACHABLE."""
    if isinstance(error, GenerationError):
        return FAILED
    if error.reason in _BAD_INPUT:
        return BAD_INPUT
    # A deadline without ErrorInfo was not reported by a server: nothing answered in time.
    silent = error.reason == errors.DEADLINE_EXCEEDED and "service" in error.metadata
    return UNREACHABLE if error.reason in _UNREACHABLE or silent else FAILED


def reject_stdout(path: Path | None, field: str) -> None:
    """Raises ChorusError that names `field` if `path` is "-", which would become the name of a file."""
    if path == Path("-"):
        raise errors.invalid(field, "must be a path, not -: stdout carries the messages of the command")


def check_folder(path: Path | None, field: str) -> None:
    """Raises ChorusError that names `field` if `path` is "-" or lies in a folder that does not exist.

    Called before anything is computed.
    """
    reject_stdout(path, field)
    if path is not None and not path.absolute().parent.is_dir():
        raise errors.invalid(field, f"the folder {path.absolute().parent} does not exist")


def as_dict(message: Message) -> dict[str, Any]:
    """Converts a message to its JSON form, with the field names of the contract and with default values."""
    fields: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields


def one_line(text: str, width: int | None = None) -> str:
    """Returns `text` safe for a terminal: unprintable characters become "·"; cut to `width` columns."""
    clean = "".join(c if c.isprintable() else "·" for c in text.replace("\n", " "))
    if width is None or cell_len(clean) <= width:
        return clean
    return set_cell_size(clean, width - 1).rstrip() + "…"
