"""Codecs: RGB video <-> latents. The interface `Codec`, an exact fold of pixels, and Wan's autoencoder."""

from services.denoiser.codec.base import Codec, Geometry
from services.denoiser.codec.space_to_depth import SpaceToDepthCodec

__all__ = ["Codec", "Geometry", "SpaceToDepthCodec"]
