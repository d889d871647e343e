"""Codecs between RGB video and latents: the interface `Codec`, an exact fold, and Wan's autoencoder."""

from services.denoiser.codec.base import Codec, Geometry
from services.denoiser.codec.space_to_depth import SpaceToDepthCodec

__all__ = ["Codec", "Geometry", "SpaceToDepthCodec"]
