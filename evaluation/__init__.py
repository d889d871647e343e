"""Evaluation of reuse, speed and quality: `chorus eval` runs it."""
