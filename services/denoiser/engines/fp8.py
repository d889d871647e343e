"""Quantisation of the blocks' matrices to 8-bit floats (E4M3), with quantise and dequantise nodes.

Weights have one scale per output channel. Activations have one scale per tensor, from the largest value
observed in a few runs. Attention, norms and layers outside the blocks keep their types. NVIDIA's ModelOpt
writes the same scheme, and TensorRT fuses it into 8-bit products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.denoiser.network.sampler import sample
from services.denoiser.network.wan import TextKV, WanTransformer

if TYPE_CHECKING:  # an export needs only torch and onnx
    from services.denoiser.model.loaded import LoadedModel
    from services.denoiser.model.predictor import Predictor

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
# First version of the operators QuantizeLinear and DequantizeLinear that supports 8-bit floats.
_VERSION = 19


class Fp8Linear(nn.Module):
    """Linear layer in 8-bit floats. In torch it computes the same values as the exported nodes.

    Args:
        largest: Upper bound on the absolute value of the layer's input; larger values are clipped.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor
    input_scale: Tensor
    zero: Tensor

    def __init__(self, linear: nn.Linear, largest: float) -> None:
        super().__init__()
        dtype, weight = linear.weight.dtype, linear.weight.detach().float()
        # Scales are rounded to the type of the exported nodes before the division.
        weight_scale = (weight.abs().amax(1).clamp_min(1e-12) / _LARGEST).to(dtype)
        self.bias = linear.bias
        self.register_buffer("weight", (weight / weight_scale.float()[:, None]).to(FP8))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero", torch.zeros(len(weight), dtype=FP8))
        self.register_buffer("input_scale", torch.tensor(max(largest, 1e-12) / _LARGEST, dtype=dtype))
        self.register_buffer("zero", torch.zeros((), dtype=FP8))

    def forward(self, x: Tensor) -> Tensor:
        weight, scale, zero = self.weight, self.input_scale, self.zero
        if torch.onnx.is_in_onnx_export():
            values = _node("QuantizeLinear", (x, scale, zero), FP8, x.shape)
            x = _node("DequantizeLinear", (values, scale, zero), x.dtype, x.shape)
            scaled = (weight, self.weight_scale, self.weight_zero)
            return F.linear(x, _node("DequantizeLinear", scaled, x.dtype, weight.shape, axis=0), self.bias)
        x = (x / scale).clamp(-_LARGEST, _LARGEST).to(FP8).to(x.dtype) * scale
        return F.linear(x, weight.to(x.dtype) * self.weight_scale[:, None], self.bias)


def _node(
    operator: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, shape: torch.Size, **attributes: int
) -> Tensor:
    out: Tensor = torch.onnx.ops.symbolic(
        f"::{operator}", inputs, dict(attributes), dtype=dtype, shape=shape, version=_VERSION
    )
    return out


def measure_input_ranges(model: LoadedModel, texts: int = 4) -> dict[str, float]:
    """Measures the largest absolute input of every quantised layer, by the layer's name.

    Runs the model's full schedule from seeded noise with random texts.

    Args:
        texts: Number of runs.
    """
    from services.denoiser.model.predictor import Predictor

    network, spec, video = model.transformer, model.spec, model.spec.video
    shape = model.latent_shape(video.frames, video.height, video.width)
    largest: dict[str, float] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    hooks = [
        layer.register_forward_pre_hook(record(name))
        for name, layer in find_quantised_layers(network).items()
    ]
    predictor = Predictor.eager(model)  # only the eager network runs the hooks of its layers
    try:
        for seed in range(texts):
            size = (min(16, spec.text.max_tokens), spec.transformer.text_dim)
            states = torch.randn(size, generator=torch.Generator().manual_seed(seed))
            text, noise = model.prepare_text(states), model.noise(seed, shape)
            velocity, fresh_noise = partial(_velocity, predictor, text), model.fresh_noise(seed, shape)
            for _ in sample(velocity, noise, spec.schedule.sigmas, fresh_noise=fresh_noise):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def _velocity(predictor: Predictor, text: TextKV, latents: Tensor, sigma: float) -> Tensor:
    return predictor.latent_velocity(latents, sigma, text)


def find_quantised_layers(network: WanTransformer) -> dict[str, nn.Linear]:
    """Returns the linear layers that a step runs for every video token, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and not name.endswith(("attn2.to_k", "attn2.to_v"))
    }


def quantise(network: WanTransformer, ranges: Mapping[str, float]) -> None:
    """Replaces the layers of a network in place. Raises KeyError for a layer without a range."""
    for name, layer in find_quantised_layers(network).items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, Fp8Linear(layer, ranges[name]))
