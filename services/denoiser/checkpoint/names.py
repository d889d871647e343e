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
# Prefixes that tools add to the names of a whole network.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "model.")


def to_original_name(name: str) -> str:
    """Returns the name in the original release: blocks.0.attn1.to_q.bias -> blocks.0.self_attn.q.bias."""
    for ours, original in _RULES:
        name = ours.sub(original, name)
    return name


def strip_prefix(name: str) -> str:
    """Returns a name without the prefix of a tool."""
    return next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)


def build_renamer(parameters: Iterable[str]) -> Callable[[str], str]:
    """Returns a function that maps any spelling of these parameters to ours and leaves other names as is."""
    known = {spelling: name for name in parameters for spelling in (to_original_name(name), name)}
    return lambda name: known.get(strip_prefix(name), name)
