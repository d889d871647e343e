"""Text encoders: the port (`Encoder`) and its implementations."""

from services.embedder.encoders.base import Encoder, Encoding, Tokens
from services.embedder.encoders.directory import CLIPEncoder, UMT5Encoder
from services.embedder.encoders.huggingface import MiniLMEncoder

__all__ = ["CLIPEncoder", "Encoder", "Encoding", "MiniLMEncoder", "Tokens", "UMT5Encoder"]
