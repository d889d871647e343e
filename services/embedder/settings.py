"""Settings of the embedder: `CHORUS_EMBEDDER_*`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from services.common.settings import MIB, ServerSettings

KINDS_WITH_PATH = ("clip", "umt5")


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to load: "minilm", which ships as a package, or "clip:/path" or "umt5:/path"."""

    kind: str
    path: Path | None = None


def parse_encoder(value: object) -> object:
    """An EncoderSpec from its text; other values pass. Raises ValueError that says what is accepted."""
    if not isinstance(value, str):
        return value
    kind, _, path = value.strip().partition(":")
    if kind == "minilm" and not path:
        return EncoderSpec(kind)
    if kind not in KINDS_WITH_PATH or not path:
        raise ValueError(f"{value!r} is no encoder: use minilm, clip:/path or umt5:/path")
    if not Path(path).is_dir():
        raise ValueError(f"{path} is no directory: name the one that holds the {kind} model")
    return EncoderSpec(kind, Path(path))


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(parse_encoder(part) for part in value.split(",") if part.strip())


class EmbedderSettings(ServerSettings):
    """Environment of `python -m services.embedder`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_EMBEDDER_", extra="ignore")

    port: Annotated[int, Field(ge=0, le=65_535)] = 7401
    # Whose vectors find donors and whose token states align two prompts.
    retrieval: Annotated[EncoderSpec, NoDecode, BeforeValidator(parse_encoder)] = EncoderSpec("minilm")
    # Whose token states condition the models served; comma separated.
    conditioning: Annotated[
        tuple[EncoderSpec, ...], NoDecode, BeforeValidator(_split), Field(min_length=1, max_length=8)
    ] = (EncoderSpec("minilm"),)
    # A short prompt gains nothing from more threads; the denoiser next door needs the cores.
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    # Calls that may wait for the encoder's thread.
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] = 128
    # How much memory the encodings of recent prompts may take.
    recent_bytes: Annotated[int, Field(ge=0, le=16 * 1024 * MIB)] = 64 * MIB
