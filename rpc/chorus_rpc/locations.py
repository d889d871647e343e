"""Locations of model files, as users write them."""

from typing import Final

# Prefix of a repository on the Hugging Face hub; anything else is a path.
HUB_SCHEME: Final = "hf://"
