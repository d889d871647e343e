"""The evaluation: what reuse does to speed and to quality. `chorus eval` runs it."""
