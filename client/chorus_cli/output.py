"""What the commands print: words for people, JSON lines for machines, and the exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer
from chorus_client import GenerationError
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError, reason_name
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

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


class Output:
    """Where a command writes. As JSON, stdout carries one object a line and nothing else.

    Messages are written in protobuf's JSON form with the names of the contract: 64-bit integers are strings.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

    def machine(self, **fields: Any) -> None:
        """One JSON line; nothing for people. Messages become objects."""
        if self.as_json:
            plain = {
                key: as_dict(value) if isinstance(value, Message) else value for key, value in fields.items()
            }
            sys.stdout.write(json.dumps(plain, ensure_ascii=True) + "\n")
            sys.stdout.flush()

    def say(self, words: RenderableType, **fields: Any) -> None:
        """`words` for people, `fields` for machines."""
        if self.as_json:
            self.machine(**fields)
        else:
            self.console.print(words, soft_wrap=isinstance(words, str))

    def note(self, text: str) -> None:
        """For people only, beside the result."""
        if not self.as_json:
            self.notes.print(text, soft_wrap=True)

    def fault(self, reason: str, message: str, **facts: Any) -> None:
        """For machines: why the command ends. `reason` is the contract's, or one of this command's own."""
        self.machine(error={"reason": reason, "message": message, **facts})

    def error(self, error: ChorusError) -> None:
        """One line for each fault."""
        self.fault(
            reason_name(error.reason),
            error.message,
            metadata=error.metadata,
            violations=[{"field": v.field, "description": v.description} for v in error.violations],
        )
        faults = [f"{v.field}: {v.description}" for v in error.violations] or [error.message]
        for fault in faults:
            self.note(f"error: {one_line(fault)}")

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Faults of a command become a line and an exit status, never a traceback."""
        try:
            yield
        except ChorusError as error:
            raise self.stop(error) from None
        except OSError as error:
            self.note(f"error: {error}")
            self.fault("LOCAL_FILE", str(error))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    def stop(self, error: ChorusError) -> typer.Exit:
        """Prints the error; the exception that ends the command with its status."""
        self.error(error)
        return typer.Exit(exit_code(error))


def exit_code(error: ChorusError) -> int:
    """1: the generation or the server failed; 2: the input is at fault; 3: nobody answers."""
    if isinstance(error, GenerationError):
        return FAILED
    if error.reason in _BAD_INPUT:
        return BAD_INPUT
    # A deadline that no server of ours reported (no ErrorInfo): the call met silence.
    silent = error.reason == errors.DEADLINE_EXCEEDED and "service" in error.metadata
    return UNREACHABLE if error.reason in _UNREACHABLE or silent else FAILED


def check_folder(path: Path | None, field: str) -> None:
    """Before anything is computed: whether a file can go there. Raises ChorusError that names `field`."""
    if path is not None and not path.absolute().parent.is_dir():
        raise errors.invalid(field, f"the folder {path.absolute().parent} does not exist")


def as_dict(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def one_line(text: str, width: int | None = None) -> str:
    """`text` safe for a terminal: what does not print becomes "·"; cut to `width` with "…"."""
    clean = "".join(c if c.isprintable() else "·" for c in text.replace("\n", " "))
    return clean if width is None or len(clean) <= width else clean[: width - 1] + "…"
