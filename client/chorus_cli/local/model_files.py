"""Text encoders that model files name: `chorus up` makes the embedder load them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chorus_rpc.errors import invalid
from chorus_rpc.locations import HUB_SCHEME

MODELS: Final = "CHORUS_DENOISER_MODELS"
ENCODERS: Final = "CHORUS_EMBEDDER_CONDITIONING"
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
    encoders = dict.fromkeys(read_encoder(Path(file)) for file in files)
    return {MODELS: ",".join(files), ENCODERS: ",".join(encoders)}


def read_encoder(file: Path) -> str:
    """Returns the text encoder of a model file, as the embedder's settings write it; paths become absolute.

    The denoiser checks the rest of the file. Raises ChorusError (INVALID_FIELD).
    """
    try:
        with file.open("rb") as stream:
            text = tomllib.load(stream).get("text", {})
    except OSError as error:
        raise invalid("model", f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid("model", f"{file}: not TOML: {error}") from error
    encoder = text.get("encoder", SHIPPED) if isinstance(text, dict) else None
    if not isinstance(encoder, str):
        form = f'must be "{SHIPPED}", or a kind and its path: "umt5:path"'
        raise invalid("model", f"{file}: text.encoder {form}")
    kind, _, location = encoder.partition(":")
    if not location or location.startswith(HUB_SCHEME):
        return encoder
    return f"{kind}:{(file.absolute().parent / Path(location).expanduser()).resolve()}"
