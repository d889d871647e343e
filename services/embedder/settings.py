"""Settings of the embedder: `CHORUS_EMBEDDER_*`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from chorus_rpc.file_kinds import describe_file
from pydantic import BeforeValidator, Field, FilePath
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.hub import local_path
from services.runtime.settings import MIB, ROOT, Port, ServerSettings, split_list

KINDS_WITH_PATH = ("clip", "umt5")
SHIPPED_LEXICON = ROOT / "models" / "shapes" / "lexicon.toml"


@dataclass(frozen=True)
class EncoderSpec:
    """Encoder to load: MiniLM, which ships as a package, or CLIP or UMT5 from a directory."""

    kind: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.kind if self.path is None else f"{self.kind}:{self.path}"


def parse_encoder(value: object) -> object:
    """Parses the text of an EncoderSpec; returns a value of another type unchanged.

    The text is "minilm", or a kind and a location: "umt5:/path", "clip:hf://owner/name@revision". Raises
    ValueError that names the accepted forms, or how to fetch a missing directory.
    """
    if not isinstance(value, str):
        return value
    kind, _, location = value.strip().partition(":")
    if kind == "minilm" and not location:
        return EncoderSpec(kind)
    if kind not in KINDS_WITH_PATH or not location:
        raise ValueError(
            f"{value!r} is not an encoder: use minilm, or clip: or umt5: and a path or hf://owner/name"
        )
    try:
        path = local_path(location)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not path.is_dir():
        found = describe_file(path)
        raise ValueError(
            f"{path} is not a directory{f'; it {found}' if found else ''}: name the directory that holds the "
            f"{kind} model and its tokenizer"
        )
    return EncoderSpec(kind, path)


def _parse_encoders(value: object) -> object:
    parts = split_list(value)
    return tuple(map(parse_encoder, parts)) if isinstance(parts, tuple) else parts


class EmbedderSettings(ServerSettings):
    """Environment of `python -m services.embedder`."""

    model_config = SettingsConfigDict(env_prefix="CHORUS_EMBEDDER_")

    port: Port = 7401

    retrieval: Annotated[EncoderSpec, NoDecode, BeforeValidator(parse_encoder)] = EncoderSpec("minilm")
    """Encoder whose vectors find donors and whose token states align two prompts: minilm, umt5:DIRECTORY or
    clip:DIRECTORY. A directory may be hf://owner/name@revision if it was downloaded before."""
    conditioning: Annotated[
        tuple[EncoderSpec, ...], NoDecode, BeforeValidator(_parse_encoders), Field(min_length=1, max_length=8)
    ] = (EncoderSpec("minilm"),)
    """Encoders whose token states condition the served models, written like the retrieval encoder, comma
    separated."""
    lexicons: Annotated[tuple[FilePath, ...], NoDecode, BeforeValidator(split_list), Field(max_length=16)] = (
        SHIPPED_LEXICON,
    )
    """Lexicon files of the served models, comma separated: words that mean the same to them. Their union
    applies to every alignment."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Floating-point type of clip and umt5; minilm always uses float32. UMT5-XXL takes 23 GB in float32 and
    half of that in bfloat16, which is slow on CPUs without instructions for it."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device that runs clip and umt5: cpu, cuda or cuda:N; minilm always runs on the CPU."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of CPU threads. One is enough for minilm, and a denoiser on the same machine needs the cores;
    UMT5-XXL benefits from more."""
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Upper bound on the calls that wait for the encoder's thread."""
    recent_bytes: Annotated[int, Field(ge=0, le=16 * 1024 * MIB)] = 64 * MIB
    """Memory for the encodings of recent prompts, in bytes."""
