"""Settings of the embedder: `CHORUS_EMBEDDER_*`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.hub import local_path
from services.runtime.settings import MIB, ServerSettings

KINDS_WITH_PATH = ("clip", "umt5")


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder to load: MiniLM, which ships as a package, or CLIP or UMT5 from a directory."""

    kind: str
    path: Path | None = None


def parse_encoder(value: object) -> object:
    """An EncoderSpec from its text; other values pass.

    "minilm", or a kind and where it lies: "umt5:/path", "clip:hf://owner/name@revision". Raises ValueError
    that says what is accepted, or how to get what is not there.
    """
    if not isinstance(value, str):
        return value
    kind, _, location = value.strip().partition(":")
    if kind == "minilm" and not location:
        return EncoderSpec(kind)
    if kind not in KINDS_WITH_PATH or not location:
        raise ValueError(
            f"{value!r} is no encoder: use minilm, or clip: or umt5: and a path or hf://owner/name"
        )
    try:
        path = local_path(location)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not path.is_dir():
        raise ValueError(f"{path} is no directory: name the one that holds the {kind} model")
    return EncoderSpec(kind, path)


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(parse_encoder(part) for part in value.split(",") if part.strip())


class EmbedderSettings(ServerSettings):
    """Environment of `python -m services.embedder`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_EMBEDDER_", extra="ignore")

    port: Annotated[int, Field(ge=0, le=65_535)] = 7401
    # Whose vectors find donors and whose token states align two prompts: minilm, umt5:DIRECTORY or
    # clip:DIRECTORY; a directory may be hf://owner/name@revision, if that was downloaded before.
    retrieval: Annotated[EncoderSpec, NoDecode, BeforeValidator(parse_encoder)] = EncoderSpec("minilm")
    # Whose token states condition the models served, written likewise; comma separated.
    conditioning: Annotated[
        tuple[EncoderSpec, ...], NoDecode, BeforeValidator(_split), Field(min_length=1, max_length=8)
    ] = (EncoderSpec("minilm"),)
    # What clip and umt5 compute in; minilm stays with float32. UMT5-XXL takes 23 GB in float32, half of that
    # in bfloat16, which is slow on CPUs without instructions for it.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Where clip and umt5 run; minilm stays on the CPU.
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    # Of the CPU. One is enough for minilm, and the denoiser next door needs the cores; UMT5-XXL wants more.
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    # Calls that may wait for the encoder's thread.
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] = 128
    # How much memory the encodings of recent prompts may take.
    recent_bytes: Annotated[int, Field(ge=0, le=16 * 1024 * MIB)] = 64 * MIB
