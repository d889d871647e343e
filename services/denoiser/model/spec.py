"""Model files: one TOML file describes a model, its weights, its sampling and the requests it accepts."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from chorus_rpc.file_kinds import describe_wrong_model_file
from chorus_rpc.limits import (
    MAX_ADAPTERS,
    MAX_ENCODER_ID_CHARACTERS,
    MAX_FPS,
    MAX_STEPS,
    MIN_FPS,
    SHA256_PATTERN,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from services.contract.schedule import find_schedule_fault, shifted_schedule
from services.denoiser.checkpoint.config import read_network_sizes
from services.denoiser.codec import Geometry, SpaceToDepthCodec
from services.denoiser.codec.wan_vae import read_geometry
from services.denoiser.model.sizes import AXES, find_odd_size, find_size_fault
from services.denoiser.network.positions import position_count
from services.denoiser.network.sampler import Sampler
from services.denoiser.network.wan import WanConfig
from services.runtime.hub import local_path

Positive = Annotated[int, Field(gt=0, lt=2**32)]  # uint32 in the API


class SpecError(ValueError):
    """Fault of a model file; the message names the file, the field and the expected value."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """Location and digest of weights.

    Attributes:
        file: Path relative to the model file, or `hf://owner/name@revision/path` for a download from the hub:
            a safetensors file, a `*.safetensors.index.json`, or a folder with either.
        sha256: Digest of the files' bytes in name order (`weights.weights_digest`). Optional if the revision
            is a commit, which pins the content as well.
    """

    file: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=f"^{SHA256_PATTERN}$")] | None = None

    @model_validator(mode="after")
    def _pinned(self) -> Source:
        if self.sha256 is None and not re.match(r"hf://[^@]+@[0-9a-f]{40}(/|$)", self.file):
            raise ValueError(
                "sha256: missing; it is optional only for hf://owner/name@<40 hex digits of a commit>"
            )
        return self

    def find(self, folder: Path) -> Path:
        """Returns the path on this machine. Raises SpecError with the download command if it is missing."""
        return _find(self.file, folder)


class Weights(Source):
    """Weights of the transformer, with the names of diffusers or of the original release."""


class Adapter(Source):
    """A LoRA, merged into the weights at load time; part of the identity of latents.

    `file` may also be the folder in which PEFT or diffusers saved it, with its settings next to the weights.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class HostAdapter(Adapter):
    """A LoRA for reused steps: merged on top of the other adapters, it computes the first step after a donor.

    Runs without a donor never use it. It is not part of the identity of latents, because what it computes is
    not stored.
    """


class Transformer(_Section):
    """Sizes of the network, as in `WanConfig`.

    Attributes:
        sizes: Location of a released `config.json`, given like that of a weights file, from which the sizes
            are read; fields of the model file override it.
        dtype: Type in which the network computes; latents are always float32. It is not part of the
            identity of latents: it changes them by rounding, as another device does, but not in meaning.
        prediction: Output of the network: v = noise - data, or the data, and then v = (x - data) / sigma.
        position_order: Order of the position basis added to the input channels (positions.py); 0 for none.
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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    prediction: Literal["velocity", "data"] = "velocity"
    position_order: Annotated[int, Field(ge=0, le=8)] = 0

    @model_validator(mode="before")
    @classmethod
    def _released_sizes(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("sizes"), str):
            return given
        return read_network_sizes(_find(given["sizes"], _folder(info))) | given

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def config(self) -> WanConfig:
        others = {"architecture", "sizes", "dtype", "prediction", "position_order"}
        return WanConfig(**self.model_dump(exclude=others))


class Refiner(Source):
    """A `TextRefiner` that the token states pass before the model reads them.

    It is part of the identity of latents, so `sha256` is required, also for a pinned
    revision.
    """

    sha256: Annotated[str, Field(pattern=f"^{SHA256_PATTERN}$")]
    dim: Annotated[int, Field(gt=0, le=2**14)]
    heads: Annotated[int, Field(gt=0, le=2**14)]
    layers: Annotated[int, Field(gt=0, le=64)]

    @model_validator(mode="after")
    def _divisible(self) -> Refiner:
        if self.dim % self.heads:
            raise ValueError(f"dim: must be a multiple of heads = {self.heads}, not {self.dim}")
        return self


class Text(_Section):
    """Text conditioning of the model.

    Attributes:
        encoder_id: Encoder whose token states condition the model.
        encoder: That encoder in the form of the embedder's settings, "umt5:path"; read by `chorus up`, not by
            the denoiser.
        lexicon: File of synonyms in the model's world, a path relative to the model file; read by
            `chorus up` only.
        max_tokens: Upper bound on the tokens of a prompt; further ones are dropped.
        attend_padding: Whether the text is padded to `max_tokens` with zeros that the model attends to, as in
            Wan; other models never see padding.
        refiner: Network that refines the token states; None for models that read the encoder's own.
    """

    encoder_id: Annotated[str, Field(min_length=1, max_length=MAX_ENCODER_ID_CHARACTERS)]
    encoder: Annotated[str | None, Field(min_length=1)] = None
    lexicon: Annotated[str | None, Field(min_length=1)] = None
    max_tokens: Positive
    attend_padding: bool
    refiner: Refiner | None = None


class SpaceToDepth(_Section):
    kind: Literal["space-to-depth"]
    temporal: Positive
    spatial: Positive
    scale: Annotated[float, Field(ge=0.01, le=100)] = 1.0

    @property
    def geometry(self) -> Geometry:
        return SpaceToDepthCodec(self.temporal, self.spatial, self.scale)


class WanVae(Source):
    """`AutoencoderKLWan` as diffusers saves it, with config.json in the folder of the weights.

    Attributes:
        tile: Side of the blended tiles in which larger videos are decoded, in pixels; this takes less memory.
            0 decodes whole frames.
    """

    kind: Literal["wan-vae"]
    tile: Annotated[int, Field(ge=0, multiple_of=32)] = 0
    _geometry: Geometry = PrivateAttr()

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> WanVae:
        self._geometry = read_geometry(self.config_file(_folder(info)))
        return self

    def config_file(self, folder: Path) -> Path:
        """Returns the path of config.json. Raises SpecError."""
        path = self.find(folder)
        return (path if path.is_dir() else path.parent) / "config.json"

    @property
    def geometry(self) -> Geometry:
        return self._geometry


class Schedule(_Section):
    """Noise schedule of the model.

    Attributes:
        sigmas: Default noise levels.
        shift: Shift of schedules with another number of steps, see `contract.schedule.shifted_schedule`.
        sampler: "euler" goes on along the velocity. "renoise" adds fresh noise to the predicted clean data
            after each step, as weights from distribution matching distillation (FastWan, CausVid) need.
    """

    sigmas: tuple[float, ...]
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sampler: Sampler = "euler"

    @model_validator(mode="after")
    def _decreasing(self) -> Schedule:
        if fault := find_schedule_fault(self.sigmas):
            raise ValueError(f"sigmas {fault}")
        return self


class Bound(_Section):
    """Inclusive range; valid values are min, min + multiple, ..."""

    min: Positive
    max: Positive
    multiple: Positive = 1

    @model_validator(mode="after")
    def _ordered(self) -> Bound:
        if self.max < self.min or (self.max - self.min) % self.multiple:
            raise ValueError(f"max must be min plus a multiple of {self.multiple}")
        return self

    def describe_fault(self, value: int) -> str | None:
        """Describes the fault of an invalid value; returns None for a valid one."""
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
    """Defaults of a request and of its mp4.

    Attributes:
        upscale: Number of times that each pixel is repeated in both directions in the mp4.
    """

    frames: Positive
    height: Positive
    width: Positive
    fps: Annotated[float, Field(ge=MIN_FPS, le=MAX_FPS)]
    upscale: Annotated[int, Field(gt=0, le=32)] = 1


class ModelSpec(_Section):
    """Description of a model without its tensors.

    Attributes:
        calibration: File of `chorus calibrate`, a path relative to the model file; read by `chorus up` only.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    calibration: Annotated[str | None, Field(min_length=1)] = None
    weights: Weights
    adapters: Annotated[tuple[Adapter, ...], Field(max_length=MAX_ADAPTERS)] = ()
    host: HostAdapter | None = None
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
        for axis in AXES:
            bound: Bound = getattr(self.bounds, axis)
            if fault := find_size_fault(codec, net.patch_size, axis, bound.model_dump()):
                raise ValueError(f"bounds.{axis}: {fault}")
            if fault := bound.describe_fault(getattr(self.video, axis)):
                raise ValueError(f"video.{axis} {fault}")
            odd = None if axis == "frames" else find_odd_size(bound.model_dump(), self.video.upscale)
            if odd is not None:
                raise ValueError(f"video.upscale: H.264 needs even sizes; bounds.{axis} allows {odd}")
        if fault := self.bounds.steps.describe_fault(len(self.schedule.sigmas) - 1):
            raise ValueError(f"schedule.sigmas: its number of steps {fault}")
        if self.bounds.steps.max > MAX_STEPS:
            raise ValueError(f"bounds.steps.max: must be at most {MAX_STEPS}, not {self.bounds.steps.max}")
        steps, shift = self.bounds.steps, self.schedule.shift
        if fault := find_schedule_fault(shifted_schedule(steps.max, shift)):
            raise ValueError(f"schedule.shift: {shift:g} gives no schedule of {steps.max} steps: it {fault}")
        return self

    @property
    def largest_latents_bytes(self) -> int:
        """Bytes of the largest latents within the bounds."""
        bounds = self.bounds
        return 4 * math.prod(
            self.codec.geometry.latent_shape(bounds.frames.max, bounds.height.max, bounds.width.max)
        )

    @property
    def largest_text_bytes(self) -> int:
        """Bytes of the largest token states."""
        return 4 * self.text.max_tokens * self.transformer.text_dim


def load_spec(path: Path) -> ModelSpec:
    """Reads and validates a model file, and the config.json files that it names.

    Raises SpecError naming the file and every invalid field.
    """
    try:
        return ModelSpec.model_validate(
            tomllib.loads(path.read_text("utf-8")), context={"folder": path.parent}
        )
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        if kind := describe_wrong_model_file(path):
            raise SpecError(f"{path}: {kind}") from error
        reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"not TOML: {error}"
        raise SpecError(f"{path}: {reason}") from error
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc'])) or 'model'}: {e['msg']}" for e in error.errors())
        raise SpecError(f"{path}: {'; '.join(faults)}") from error


def _folder(info: ValidationInfo) -> Path:
    """Returns the folder of the model file, to which paths are relative."""
    return Path((info.context or {}).get("folder", "."))


def _find(location: str, folder: Path) -> Path:
    try:
        return local_path(location, folder)
    except (FileNotFoundError, ValueError) as error:
        raise SpecError(str(error)) from error
