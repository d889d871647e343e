"""Measures of generated videos: contents, artefacts, sharpness, diversity, distance to rendered ones."""
