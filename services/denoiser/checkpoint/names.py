"""Names of Wan's parameters in released files: those of diffusers, used here, and of the original release."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# Ours -> original, in this order.
_RULES = tuple(
    (re.compile(ours), original)
    for ours, original in (
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^proj_out\.", "head.head."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"\.scale_shift_table$", ".modulation"),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".o."),
        # The original numbers the norms differently; only this one has parameters.
        (r"\.norm2\.", ".norm3."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
    )
)
# Prefixes that tools add to the names of a whole network, some of them one to another.
_PREFIXES = (
    *("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "model."),
    *("pipe.dit.", "pipe.", "dit.", "module.", "_orig_mod."),
)
# Parts of the names of other networks; the first that is found names it.
_FOREIGN = tuple(
    (re.compile(rf"(?:^|[._])(?:{part})(?:$|[._])"), network)
    for part, network in (
        (r"first_stage_model|cond_stage_model|text_encoders", "a checkpoint of several networks in one file"),
        (r"vace(?:_blocks|_patch_embedding)", "VACE"),
        (
            r"k_img|v_img|img_emb|add_k_proj|add_v_proj|image_embedder|norm_added_k|norm_k_img",
            "image-to-video Wan; only text-to-video is supported",
        ),
        (r"transformer_2", "the second transformer of Wan2.2"),
        (r"lora_te\d?|text_encoder|text_model|encoder\.block|shared", "a text encoder"),
        (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX or HunyuanVideo"),
        (
            r"downsamples|upsamples",
            "an autoencoder in the names of Wan's original release; use the one in diffusers' format",
        ),
        (
            r"input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block",
            "a convolutional network, such as an autoencoder or Stable Diffusion",
        ),
        (r"transformer_blocks", "another transformer of diffusers"),
    )
)


def to_original_name(name: str) -> str:
    """Returns the name in the original release: blocks.0.attn1.to_q.bias -> blocks.0.self_attn.q.bias."""
    for ours, original in _RULES:
        name = ours.sub(original, name)
    return name


def strip_prefix(name: str) -> str:
    """Returns a name without the prefixes of tools."""
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def describe_foreign_network(names: Iterable[str], own: Iterable[str] = ()) -> str | None:
    """Names the network that some of these tensors belong to, if it is often confused with the expected one.

    Args:
        own: Parameters of the expected network; what is also found in their names is no sign of another.
    """
    names, own = list(names), list(own)
    return next(
        (
            network
            for pattern, network in _FOREIGN
            if any(map(pattern.search, names)) and not any(map(pattern.search, own))
        ),
        None,
    )


def build_renamer(parameters: Iterable[str]) -> Callable[[str], str]:
    """Returns a function that maps any spelling of these parameters to ours and leaves other names as is."""
    known = {spelling: name for name in parameters for spelling in (to_original_name(name), name)}
    return lambda name: known.get(strip_prefix(name), name)
