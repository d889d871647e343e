"""Reads the text encoders, lexicons and calibrations that model files name, for `chorus up`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chorus_rpc.errors import invalid
from chorus_rpc.file_kinds import describe_wrong_model_file
from chorus_rpc.locations import HUB_SCHEME

MODELS: Final = "CHORUS_DENOISER_MODELS"
ENCODERS: Final = "CHORUS_EMBEDDER_CONDITIONING"
LEXICONS: Final = "CHORUS_EMBEDDER_LEXICONS"
CALIBRATIONS: Final = "CHORUS_SCHEDULER_CALIBRATIONS"
SHIPPED: Final = "minilm"


def choose_models(models: Sequence[Path], base: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that make the services serve `models`, or the models that `base` names.

    Raises ChorusError (INVALID_FIELD) for a file that cannot be read, and if both name models.
    """
    if models and MODELS in base:
        raise invalid("model", f"{MODELS} names models, too: leave out one of the two")
    files = [str(path.absolute()) for path in models] or [
        part.strip() for part in base.get(MODELS, "").split(",") if part.strip()
    ]
    if not files:
        return {}
    contents = {Path(file): _read_file(Path(file)) for file in files}
    texts = {file: _find_text_section(file, content) for file, content in contents.items()}
    encoders = dict.fromkeys(read_encoder(file, text) for file, text in texts.items())
    lexicons = [path for file, text in texts.items() if (path := read_lexicon(file, text))]
    calibrations = [path for file, found in contents.items() if (path := read_calibration(file, found))]
    return {
        MODELS: ",".join(files),
        ENCODERS: ",".join(encoders),
        LEXICONS: ",".join(dict.fromkeys(lexicons)),
        CALIBRATIONS: ",".join(dict.fromkeys(calibrations)),
    }


def _read_file(file: Path) -> dict[str, object]:
    """Reads a model file, which the denoiser validates. Raises ChorusError (INVALID_FIELD)."""
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        if kind := describe_wrong_model_file(file):
            raise invalid("model", f"{file}: {kind}") from error
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"not TOML: {error}"
        raise invalid("model", f"{file}: {reason}") from error


def _find_text_section(file: Path, content: Mapping[str, object]) -> dict[str, object]:
    """Returns the [text] table of a model file. Raises ChorusError (INVALID_FIELD)."""
    text = content.get("text", {})
    if not isinstance(text, dict):
        raise invalid("model", f"{file}: text: must be a table")
    return text


def read_encoder(file: Path, text: Mapping[str, object]) -> str:
    """Returns a model's text encoder as the embedder's settings write it, with absolute paths.

    Raises ChorusError (INVALID_FIELD).
    """
    encoder = text.get("encoder", SHIPPED)
    if not isinstance(encoder, str):
        form = f'must be "{SHIPPED}", or a kind and its path: "umt5:path"'
        raise invalid("model", f"{file}: text.encoder {form}")
    kind, _, location = encoder.partition(":")
    if not location or location.startswith(HUB_SCHEME):
        return encoder
    return f"{kind}:{(file.absolute().parent / Path(location).expanduser()).resolve()}"


def read_lexicon(file: Path, text: Mapping[str, object]) -> str:
    """Returns the absolute path of a model's lexicon; empty if none. Raises ChorusError (INVALID_FIELD)."""
    return _locate(file, "text.lexicon", text.get("lexicon", ""))


def read_calibration(file: Path, content: Mapping[str, object]) -> str:
    """Returns the absolute path of a model's calibration; empty if none. Raises as `read_lexicon` does."""
    return _locate(file, "calibration", content.get("calibration", ""))


def _locate(file: Path, field: str, path: object) -> str:
    if not isinstance(path, str):
        raise invalid("model", f"{file}: {field} must be a path relative to the model file")
    return str((file.absolute().parent / path).resolve()) if path else ""
