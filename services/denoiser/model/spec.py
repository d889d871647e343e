"""A model is one TOML file: what it is, which weights, how it is sampled, what it accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from chorus_rpc.limits import SHA256_PATTERN
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from services.contract.schedule import find_schedule_fault
from services.denoiser.checkpoint.config import network_sizes
from services.denoiser.codec import Geometry, SpaceToDepthCodec
from services.denoiser.codec.wan_vae import read_geometry
from services.denoiser.network.positions import position_count
from services.denoiser.network.wan import WanConfig
from services.runtime.hub import local_path

Positive = Annotated[int, Field(gt=0)]


class SpecError(ValueError):
    """A model file that cannot be used; the message names file, field and what is expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """Where weights lie, and their digest.

    `file` is a path relative to the model file, or `hf://owner/name@revision/path` for what was downloaded
    from the hub: a safetensors file, a `*.safetensors.index.json`, or a folder with either. `sha256` is
    `weights.weights_digest`, that of the files' bytes in name order; it may be left out where the revision is
    a commit, which pins the content as well.
    """

    file: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=f"^{SHA256_PATTERN}$")] | None = None

    @model_validator(mode="after")
    def _pinned(self) -> Source:
        if self.sha256 is None and not re.match(r"hf://[^@]+@[0-9a-f]{40}(/|$)", self.file):
            raise ValueError(
                "sha256: missing; it may be left out for hf://owner/name@<40 hex digits of a commit>"
            )
        return self

    def find(self, folder: Path) -> Path:
        """The files on this machine. Raises SpecError that says how to get what is missing."""
        return _find(self.file, folder)


class Weights(Source):
    """Of the transformer, as diffusers or as the original release names them."""


class Adapter(Source):
    """A LoRA, merged into the weights when they are loaded; part of the identity of latents."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class Transformer(_Section):
    """Sizes of the network, as in `WanConfig`.

    `sizes`, a location like a weights file's, brings those of a released `config.json`; what is written
    beside it counts more.
    """

    architecture: Literal["wan"]
    sizes: str | None = None
    in_channels: Positive
    out_channels: Positive
    patch_size: tuple[Positive, Positive, Positive]
    heads: Positive
    head_dim: Annotated[int, Field(ge=6, multiple_of=2)]
    ffn_dim: Positive
    layers: Positive
    text_dim: Positive
    freq_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    eps: Annotated[float, Field(gt=0)] = 1e-6
    # What the network computes in; latents are float32 always. Not part of the identity of latents: it
    # changes them by rounding, as another device does, not in what they mean.
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # What the network says: v = noise - data, or the data itself, and then v = (x - data) / sigma.
    prediction: Literal["velocity", "data"] = "velocity"
    # Order of the position basis that enters beside the latents (see positions.py); 0 is none.
    position_order: Annotated[int, Field(ge=0, le=8)] = 0

    @model_validator(mode="before")
    @classmethod
    def _released_sizes(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("sizes"), str):
            return given
        return network_sizes(_find(given["sizes"], _folder(info))) | given

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def config(self) -> WanConfig:
        others = {"architecture", "sizes", "dtype", "prediction", "position_order"}
        return WanConfig(**self.model_dump(exclude=others))


class Text(_Section):
    """Which encoder's token states condition the model, and how they are laid out."""

    encoder_id: Annotated[str, Field(min_length=1)]
    # How the embedder's settings write that encoder, "umt5:path"; read by `chorus up`, not by the denoiser.
    encoder: Annotated[str | None, Field(min_length=1)] = None
    # Synonyms in the model's world, a path relative to the model file; likewise read by `chorus up`.
    lexicon: Annotated[str | None, Field(min_length=1)] = None
    max_tokens: Positive
    # Wan pads the text to `max_tokens` with zeros and attends to them; other models never see padding.
    attend_padding: bool


class SpaceToDepth(_Section):
    kind: Literal["space-to-depth"]
    temporal: Positive
    spatial: Positive

    @property
    def geometry(self) -> Geometry:
        return SpaceToDepthCodec(self.temporal, self.spatial)


class WanVae(Source):
    """`AutoencoderKLWan` as diffusers saves it, with its config.json beside the weights."""

    kind: Literal["wan-vae"]
    # Decodes videos larger than this in tiles of so many pixels, blended: less memory. 0: never.
    tile: Annotated[int, Field(ge=0, multiple_of=32)] = 0
    _geometry: Geometry = PrivateAttr()

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> WanVae:
        self._geometry = read_geometry(self.config_file(_folder(info)))
        return self

    def config_file(self, folder: Path) -> Path:
        """The config.json beside the weights; raises SpecError."""
        path = self.find(folder)
        return (path if path.is_dir() else path.parent) / "config.json"

    @property
    def geometry(self) -> Geometry:
        return self._geometry


class Schedule(_Section):
    """`sigmas` is the default; otherwise n steps are `common.schedule.shifted_schedule(n, shift)`."""

    sigmas: tuple[float, ...]
    shift: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _decreasing(self) -> Schedule:
        if fault := find_schedule_fault(self.sigmas):
            raise ValueError(f"sigmas {fault}")
        return self


class Bound(_Section):
    """Inclusive; valid values are min, min + multiple, ..."""

    min: Positive
    max: Positive
    multiple: Positive = 1

    @model_validator(mode="after")
    def _ordered(self) -> Bound:
        if self.max < self.min or (self.max - self.min) % self.multiple:
            raise ValueError(f"max must be min plus a multiple of {self.multiple}")
        return self

    def fault(self, value: int) -> str | None:
        """What is wrong with a value, in words, or None."""
        if self.min <= value <= self.max and (value - self.min) % self.multiple == 0:
            return None
        if self.min == self.max:
            return f"must be {self.min}, not {value}"
        step = "" if self.multiple == 1 else f" in steps of {self.multiple}"
        return f"must be {self.min} to {self.max}{step}, not {value}"


class Bounds(_Section):
    frames: Bound
    height: Bound
    width: Bound
    steps: Bound


class Video(_Section):
    """Defaults of a request and of its mp4; each pixel is shown `upscale` times in both directions."""

    frames: Positive
    height: Positive
    width: Positive
    fps: Annotated[float, Field(gt=0, le=240)]
    upscale: Annotated[int, Field(gt=0, le=32)] = 1


class ModelSpec(_Section):
    """Everything about a model but its tensors."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    weights: Weights
    adapters: tuple[Adapter, ...] = ()
    transformer: Transformer
    text: Text
    codec: Annotated[SpaceToDepth | WanVae, Field(discriminator="kind")]
    schedule: Schedule
    bounds: Bounds
    video: Video

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        codec, net = self.codec.geometry, self.transformer
        if net.out_channels != codec.latent_channels:
            raise ValueError(f"transformer.out_channels must be the codec's {codec.latent_channels}")
        expected = codec.latent_channels + position_count(net.position_order)
        if net.in_channels != expected:
            raise ValueError(f"transformer.in_channels must be latents + positions = {expected}")
        for name in ("frames", "height", "width"):
            if fault := getattr(self.bounds, name).fault(getattr(self.video, name)):
                raise ValueError(f"video.{name} {fault}")
        if fault := self.bounds.steps.fault(len(self.schedule.sigmas) - 1):
            raise ValueError(f"schedule.sigmas: its number of steps {fault}")
        shape = codec.latent_shape(self.video.frames, self.video.height, self.video.width)
        for axis, size, patch in zip(("frames", "height", "width"), shape[1:], net.patch_size, strict=True):
            if size % patch:
                raise ValueError(f"video.{axis}: {size} latent cells are no multiple of the patch's {patch}")
        return self


def load_spec(path: Path) -> ModelSpec:
    """Read and validate a model file, and the config.json files it names.

    Raises SpecError naming the file and every field at fault.
    """
    try:
        return ModelSpec.model_validate(
            tomllib.loads(path.read_text("utf-8")), context={"folder": path.parent}
        )
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{path}: {'; '.join(faults)}") from error


def _folder(info: ValidationInfo) -> Path:
    """The model file's: what relative paths start from."""
    return Path((info.context or {}).get("folder", "."))


def _find(location: str, folder: Path) -> Path:
    try:
        return local_path(location, folder)
    except (FileNotFoundError, ValueError) as error:
        raise SpecError(str(error)) from error
