"""Bounds of public fields, each stated once."""

from typing import Final

MAX_STEPS: Final = 200
