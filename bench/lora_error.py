"""Measures adapters (LoRA) against PEFT and diffusers, for every form in which the two save one.

`python -m bench.lora_error` prints the error of each form. The library saves an adapter with random weights,
loads it and merges it into a small random `WanTransformer3DModel`; the denoiser gets it in a model file. The
error is that of the network's output, relative as in `bench.parity`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from bench.parity import relative_error, save_checkpoint
from services.denoiser.checkpoint.names import to_original_name
from services.denoiser.checkpoint.weights import weights_digest
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.model.predictor import Predictor

TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
PATTERNS: Final = {
    "rank_pattern": {"attn1.to_q": 2, "ffn.net.2": 8},
    "alpha_pattern": {r"^blocks\.1\.attn1\.to_k": 3, "to_v": 6.5},
}
TOKENS: Final = 6


@dataclass(frozen=True)
class SavedAdapter:
    """Adapter on disk, and the network into which the library merged it.

    Attributes:
        file: Path for the model file: a safetensors file or a folder.
        reference: Network with the adapter.
    """

    file: Path
    reference: Any
    scale: float = 1.0


Form = Callable[[Path, Path], SavedAdapter]  # folder of the transformer, folder for the adapter


@dataclass(frozen=True)
class _Peft:
    """Form saved by `PeftModel.save_pretrained`, merged by `merge_and_unload`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter_name: str = "default"
    convert: bool = False  # to a plain LoRA of the initial base weights, as PEFT offers for PiSSA and OLoRA

    def __call__(self, transformer: Path, folder: Path) -> SavedAdapter:
        model: Any = get_peft_model(
            load_reference(transformer), build_config(**self.settings), adapter_name=self.adapter_name
        )
        options: dict[str, Any] = {}
        if self.convert:
            model.peft_config[self.adapter_name].init_lora_weights = True
            model.save_pretrained(folder / "initial")
            model.peft_config[self.adapter_name].init_lora_weights = self.settings["init_lora_weights"]
            options["path_initial_model_for_weight_conversion"] = str(folder / "initial")
        perturb(model)
        model.save_pretrained(folder / "adapter", **options)
        file = folder / "adapter" / ("" if self.adapter_name == "default" else self.adapter_name)
        loaded: Any = PeftModel.from_pretrained(load_reference(transformer), str(file))
        return SavedAdapter(file, loaded.merge_and_unload())


@dataclass(frozen=True)
class _Diffusers:
    """Form saved and merged by `WanPipeline` (`save_lora_weights`, `fuse_lora`).

    Attributes:
        note: Whether the settings are saved in the header of the file.
        of_model: Whether `WanTransformer3DModel.save_lora_adapter` saves and loads it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    note: bool = True
    of_model: bool = False
    scale: float = 1.0

    def __call__(self, transformer: Path, folder: Path) -> SavedAdapter:
        network, config = load_reference(transformer), build_config(**self.settings)
        network.add_adapter(config, adapter_name="default")
        perturb(network)
        if self.of_model:
            network.save_lora_adapter(folder)
        else:
            untyped: Any = config
            WanPipeline.save_lora_weights(
                folder,
                transformer_lora_layers=get_peft_model_state_dict(network),
                transformer_lora_adapter_metadata=untyped.to_dict() if self.note else None,
            )
        [file] = folder.glob("*.safetensors")
        if self.of_model:
            reference = load_reference(transformer)
            reference.load_lora_adapter(str(folder), prefix=None, weight_name=file.name)
            reference.fuse_lora(self.scale)
            return SavedAdapter(file, reference, self.scale)
        return SavedAdapter(file, fuse(transformer, file, self.scale), self.scale)


def _save_original_names(transformer: Path, folder: Path, *, flat: bool) -> SavedAdapter:
    """Form of other trainers that diffusers converts: LightX2V's, or flat names as musubi-tuner's."""
    generator, state = torch.Generator().manual_seed(2), {}
    for name, parameter in load_reference(transformer).named_parameters():
        module, _, leaf = to_original_name(name).rpartition(".")
        if not any(part in name for part in (".to_", ".ffn.")):
            continue
        key = f"lora_unet_{module.replace('.', '_')}" if flat else f"diffusion_model.{module}"
        if leaf == "weight":
            outer, inner = parameter.shape
            state[f"{key}.lora_down.weight"] = 0.2 * torch.randn(4, inner, generator=generator)
            state[f"{key}.lora_up.weight"] = 0.2 * torch.randn(outer, 4, generator=generator)
            state[f"{key}.alpha"] = torch.tensor(2.0)
        elif not flat:
            state[f"{key}.diff_b"] = 0.2 * torch.randn(parameter.shape, generator=generator)
    file = folder / "adapter.safetensors"
    save_file(state, file)
    return SavedAdapter(file, fuse(transformer, file, 1.0))


_PEFT: Final[Mapping[str, Form]] = {
    "alpha 16": _Peft(),
    "alpha = r": _Peft({"lora_alpha": 4}),
    "alpha 10, r 3": _Peft({"lora_alpha": 10, "r": 3}),
    "rsLoRA": _Peft({"use_rslora": True}),
    "patterns": _Peft(PATTERNS),
    "rsLoRA, patterns": _Peft({"use_rslora": True, **PATTERNS}),
    "bias all": _Peft({"bias": "all"}),
    "bias lora_only": _Peft({"bias": "lora_only"}),
    "lora_bias": _Peft({"lora_bias": True, "use_rslora": True}),
    "modules_to_save": _Peft({"modules_to_save": ["proj_out"]}),
    "convolution": _Peft({"target_modules": ["patch_embedding"]}),
    "some layers": _Peft({"layers_to_transform": [1], "layers_pattern": "blocks"}),
    "orthogonal": _Peft({"init_lora_weights": "orthogonal"}),
    "named": _Peft(adapter_name="style"),
    "PiSSA, converted": _Peft({"init_lora_weights": "pissa"}, convert=True),
}
_DIFFUSERS: Final[Mapping[str, Form]] = {
    "alpha 16": _Diffusers(),
    "scale 0.7": _Diffusers({"lora_alpha": 10, "r": 3}, scale=0.7),
    "rsLoRA": _Diffusers({"use_rslora": True}),
    "patterns": _Diffusers(PATTERNS),
    "lora_bias": _Diffusers({"lora_bias": True}),
    "no notes": _Diffusers({"lora_alpha": 4}, note=False),
    "no notes, ranks": _Diffusers({"lora_alpha": 4, "rank_pattern": PATTERNS["rank_pattern"]}, note=False),
    "of the transformer": _Diffusers(PATTERNS, of_model=True),
    "LightX2V": partial(_save_original_names, flat=False),
    "musubi-tuner": partial(_save_original_names, flat=True),
}
FORMS: Final[Mapping[str, Form]] = {
    **{f"peft: {name}": form for name, form in _PEFT.items()},
    **{f"diffusers: {name}": form for name, form in _DIFFUSERS.items()},
}


def measure_lora_error() -> dict[str, float]:
    """Measures the relative error of the network's output, keyed by form."""
    with tempfile.TemporaryDirectory() as directory:
        model_file, errors = save_checkpoint(Path(directory)), {}
        for i, (name, form) in enumerate(FORMS.items()):
            errors[name] = measure_form(form, model_file, Path(directory) / f"adapter-{i}")
    return errors


def measure_form(form: Form, model_file: Path, folder: Path) -> float:
    """Measures one form; saves the adapter in `folder`, which is created."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        saved = form(model_file.parent / "pipeline" / "transformer", folder)
    expected = run_reference(saved.reference)
    return relative_error(run_adapted(model_file, write_entry(saved.file, saved.scale)), expected)


def build_config(**settings: Any) -> LoraConfig:
    """Returns a configuration of rank 4 and alpha 16 for all linear layers of the blocks."""
    make: Any = LoraConfig
    config: LoraConfig = make(**{"r": 4, "lora_alpha": 16, "target_modules": list(TARGETS)} | settings)
    return config


def load_reference(transformer: Path) -> Any:
    """Loads the network that diffusers saved."""
    make: Any = WanTransformer3DModel
    return make.from_pretrained(transformer).eval()


def perturb(network: Any) -> None:
    """Changes every trainable parameter, because those that start as zeros would hide errors."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))


def fuse(transformer: Path, file: Path, scale: float) -> Any:
    """Returns the network into which diffusers' pipeline merged a file."""
    load: Any = WanPipeline.from_pretrained
    pipeline = load(transformer.parent, text_encoder=None, tokenizer=None, vae=None)
    pipeline.load_lora_weights(str(file))
    pipeline.fuse_lora(lora_scale=scale)
    return pipeline.transformer.eval()


@torch.no_grad()
def run_reference(network: Any) -> Tensor:
    """Returns the output of diffusers' network for fixed inputs."""
    latents, text = build_inputs()
    found: Tensor = network(latents[None], torch.tensor([937.5]), text[None], return_dict=False)[0]
    return found


@torch.no_grad()
def run_adapted(model_file: Path, entries: str) -> Tensor:
    """Returns the output of the denoiser's network with adapters for the same inputs.

    Args:
        entries: `[[adapters]]` of the model file.
    """
    path = model_file.with_name("adapted.toml")
    path.write_text(model_file.read_text().replace("max_tokens = 512", f"max_tokens = {TOKENS}") + entries)
    model = LoadedModel.load(path)
    latents, text = build_inputs()
    return Predictor.eager(model).latent_velocity(latents, 0.9375, model.prepare_text(text))[None]


def build_inputs() -> tuple[Tensor, Tensor]:
    """Returns latents [C, T, H, W] and token states [TOKENS, text_dim]; equal in every call."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(16, 2, 4, 6, generator=generator), torch.randn(TOKENS, 32, generator=generator)


def write_entry(file: Path, scale: float = 1.0, id: str = "style") -> str:
    """Returns the entry of a model file for an adapter."""
    [weights] = file.glob("*.safetensors") if file.is_dir() else [file]
    digest = weights_digest(weights)
    return f'\n[[adapters]]\nid = "{id}"\nfile = "{file}"\nsha256 = "{digest}"\nscale = {scale}\n'


def main() -> None:
    errors = measure_lora_error()
    print(*(f"{name:32} {error:.2e}" for name, error in errors.items()), sep="\n")
    print(f"{'largest':32} {max(errors.values()):.2e}")


if __name__ == "__main__":
    main()
