"""Sizes of videos that a codec and a patch size can serve, by pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from services.denoiser.codec import Geometry

AXES: Final = ("frames", "height", "width")


def find_size_fault(
    geometry: Geometry, patch_size: tuple[int, int, int], axis: str, bound: Mapping[str, int]
) -> str | None:
    """Describes why some size of a bound cannot be served, with the next bound that can; None if all can be.

    A size can be served if its latents divide into whole patches.

    Args:
        axis: One of AXES.
        bound: min, max and multiple; max is min plus a multiple of `multiple`.
    """
    temporal, patch = axis == "frames", patch_size[AXES.index(axis)]
    factor = geometry.temporal_factor if temporal else geometry.spatial_factor
    unit = factor * patch
    # A causal codec gives 1 + (n - 1) / factor frames, a multiple of `patch` for n = 1 - factor modulo unit.
    rest = (1 - factor) % unit if temporal and geometry.causal else 0
    low, high, multiple = bound["min"], bound["max"], bound["multiple"]
    if low % unit == rest and (low == high or multiple % unit == 0):
        return None
    rule = f"must be {f'{rest} plus ' if rest else ''}multiples of {unit} (codec {factor}, patch {patch})"
    low += (rest - low) % unit
    multiple = math.lcm(multiple, unit)
    if low > high:
        return rule
    high = low + (high - low) // multiple * multiple
    return f"{rule}, for instance {axis} = {{ min = {low}, max = {high}, multiple = {multiple} }}"


def find_odd_size(bound: Mapping[str, int], upscale: int) -> int | None:
    """Returns a size of a bound that is odd after enlargement, or None: H.264 encodes even sizes only."""
    low, high, multiple = bound["min"], bound["max"], bound["multiple"]
    if low * upscale % 2:
        return low
    return low + multiple if high > low and multiple * upscale % 2 else None
