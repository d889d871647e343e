"""Text encoders: the port (`Encoder`) and its implementations."""

from services.embedder.encoders.base import Encoder, Encoding
from services.embedder.encoders.huggingface import MiniLMEncoder, TransformersEncoder

__all__ = ["Encoder", "Encoding", "MiniLMEncoder", "TransformersEncoder"]
