"""What `chorus up` reads from model files: which text encoders the embedder has to load for them."""

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


def choose(said: Sequence[Path], base: Mapping[str, str]) -> dict[str, str]:
    """The variables that make the services serve these model files, or those that `base` names already.

    Raises ChorusError (INVALID_FIELD) for a file that cannot be read, and when both are said.
    """
    if said and MODELS in base:
        raise invalid("model", f"{MODELS} says which models, too: leave out one of the two")
    files = [str(path.absolute()) for path in said] or [
        part.strip() for part in base.get(MODELS, "").split(",") if part.strip()
    ]
    if not files:
        return {}
    encoders = dict.fromkeys(encoder(Path(file)) for file in files)
    return {MODELS: ",".join(files), ENCODERS: ",".join(encoders)}


def encoder(file: Path) -> str:
    """A model's text encoder as the embedder's settings write it; paths in it become absolute.

    The denoiser checks the rest of the file. Raises ChorusError (INVALID_FIELD).
    """
    try:
        with file.open("rb") as stream:
            text = tomllib.load(stream).get("text", {})
    except OSError as error:
        raise invalid("model", f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid("model", f"{file}: not TOML: {error}") from error
    said = text.get("encoder", SHIPPED) if isinstance(text, dict) else None
    if not isinstance(said, str):
        raise invalid(
            "model", f'{file}: text.encoder must be "{SHIPPED}", or a kind and where it lies: "umt5:path"'
        )
    kind, _, location = said.partition(":")
    if not location or location.startswith(HUB_SCHEME):
        return said
    return f"{kind}:{(file.absolute().parent / Path(location).expanduser()).resolve()}"
