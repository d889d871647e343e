"""A model is one TOML file: what it is, which weights, how it is sampled, what it accepts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.common.schedule import schedule_fault
from services.denoiser.codec import Codec, SpaceToDepthCodec
from services.denoiser.models.positions import position_count
from services.denoiser.models.wan import WanConfig

Positive = Annotated[int, Field(gt=0)]


class SpecError(Exception):
    """A model file that cannot be used; the message names file, field and what is expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Weights(_Section):
    """`file` is relative to the model file: a safetensors file or a `*.safetensors.index.json`."""

    file: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Transformer(_Section):
    """Sizes of the network, as in `WanConfig`."""

    architecture: Literal["wan"]
    in_channels: Positive
    out_channels: Positive
    patch_size: tuple[Positive, Positive, Positive]
    heads: Positive
    head_dim: Annotated[int, Field(ge=6, multiple_of=2)]
    ffn_dim: Positive
    layers: Positive
    text_dim: Positive
    freq_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    # What the network says: v = noise - data, or the data itself, and then v = (x - data) / sigma.
    prediction: Literal["velocity", "data"] = "velocity"
    # Order of the position basis that enters beside the latents (see positions.py); 0 is none.
    position_order: Annotated[int, Field(ge=0, le=8)] = 0

    def config(self) -> WanConfig:
        return WanConfig(**self.model_dump(exclude={"architecture", "prediction", "position_order"}))


class Text(_Section):
    """Which encoder's token states condition the model, and how they are laid out."""

    encoder_id: Annotated[str, Field(min_length=1)]
    max_tokens: Positive
    # Wan pads the text to `max_tokens` with zeros and attends to them; other models never see padding.
    attend_padding: bool


class SpaceToDepth(_Section):
    kind: Literal["space-to-depth"]
    temporal: Positive
    spatial: Positive


class Schedule(_Section):
    """`sigmas` is the default; otherwise n steps are `common.schedule.shifted_schedule(n, shift)`."""

    sigmas: tuple[float, ...]
    shift: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _decreasing(self) -> Schedule:
        if fault := schedule_fault(self.sigmas):
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
    transformer: Transformer
    text: Text
    codec: SpaceToDepth
    schedule: Schedule
    bounds: Bounds
    video: Video

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        codec, net = self.make_codec(), self.transformer
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

    def make_codec(self) -> Codec:
        return SpaceToDepthCodec(self.codec.temporal, self.codec.spatial)


def load_spec(path: Path) -> ModelSpec:
    """Read and validate a model file. Raises SpecError naming the file and every field at fault."""
    try:
        return ModelSpec.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{path}: {'; '.join(faults)}") from error
