"""Networks with random weights: ours, and diffusers' own with the same ones."""

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
    """A network that was never anywhere but on `device`; its layers keep the size of what they read."""
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


def as_diffusers(network: WanTransformer) -> Any:
    """The network as diffusers' `WanTransformer3DModel`, with the same weights in the same memory.

    Raises ImportError where diffusers is missing.
    """
    from diffusers import WanTransformer3DModel

    make: Any = WanTransformer3DModel
    config = network.config
    with torch.device("meta"):
        model = make(
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
    # Its rotary table is no parameter, and was made without values.
    rope = type(model.rope)(config.head_dim, config.patch_size, model.config.rope_max_seq_len)
    model.rope = rope.to(network.proj_out.weight.device)
    return model.eval().requires_grad_(False)


def diffusers_step(
    network: WanTransformer, tokens: Tensor, grid: Grid, states: Tensor, timestep: Tensor
) -> Callable[[], Tensor]:
    """One full step of `WanTransformer3DModel` with the same weights in the same memory, as tokens.

    Args:
        tokens: [1, N, in_channels*P].
        states: the text's [1, L, text_dim]; it projects them in every step, as its pipeline does.

    Raises ImportError where diffusers is missing.
    """
    config, model = network.config, as_diffusers(network)
    latents = unpatchify(tokens, grid, config.patch_size)

    def step() -> Tensor:
        out: Tensor = model(latents, timestep, states, return_dict=False)[0]
        return patchify(out, config.patch_size)

    return step
