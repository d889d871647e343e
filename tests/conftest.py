"""What every test shares."""

from hypothesis import settings

# A busy machine makes a slow example, not a wrong one.
settings.register_profile("chorus", deadline=None)
settings.load_profile("chorus")
