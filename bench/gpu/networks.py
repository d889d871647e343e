"""Networks with random weights: the denoiser's, and diffusers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from services.denoiser.network.wan import (
    Grid,
    WanConfig,
    WanTransformer,
    parameter_dtype,
    patchify,
    unpatchify,
)


@torch.no_grad()
def random_network(
    config: WanConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> WanTransformer:
    """Creates a network directly on `device`. Its weights preserve the magnitude of activations."""
    with torch.device("meta"):
        network = WanTransformer(config)
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, parameter in network.named_parameters():
        value = torch.empty(parameter.shape, dtype=parameter_dtype(name, dtype), device=device)
        if parameter.ndim == 1:
            value.normal_(
                1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.02, generator=generator
            )
        else:
            fan_in = parameter.shape[-1] if "table" in name else parameter[0].numel()
            value.normal_(0.0, fan_in**-0.5, generator=generator)
        state[name] = value
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def build_diffusers_network(network: WanTransformer) -> Any:
    """Builds diffusers' `WanTransformer3DModel` with the same weights in the same memory.

    Raises ImportError if diffusers is not installed.
    """
    from diffusers import WanTransformer3DModel

    construct: Any = WanTransformer3DModel
    config = network.config
    with torch.device("meta"):
        model = construct(
            patch_size=config.patch_size,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.layers,
            cross_attn_norm=True,
            eps=config.eps,
        )
    model.load_state_dict(network.state_dict(), assign=True)
    # The rotary table is not a parameter and has no values on the device "meta".
    rope = type(model.rope)(config.head_dim, config.patch_size, model.config.rope_max_seq_len)
    model.rope = rope.to(network.proj_out.weight.device)
    return model.eval().requires_grad_(False)


def build_diffusers_step(
    network: WanTransformer, tokens: Tensor, grid: Grid, states: Tensor, timestep: Tensor
) -> Callable[[], Tensor]:
    """Builds one full step of `WanTransformer3DModel` with the same weights in the same memory.

    The step returns tokens.

    Args:
        tokens: Input tokens [1, N, in_channels*P].
        states: Text states [1, L, text_dim], projected in every step as diffusers' pipeline does.

    Raises ImportError if diffusers is not installed.
    """
    config, model = network.config, build_diffusers_network(network)
    latents = unpatchify(tokens, grid, config.patch_size)

    def step() -> Tensor:
        out: Tensor = model(latents, timestep, states, return_dict=False)[0]
        return patchify(out, config.patch_size)

    return step
