"""Configuration of every test."""

from hypothesis import settings

# On a busy machine an example is slow, not wrong.
settings.register_profile("chorus", deadline=None)
settings.load_profile("chorus")
