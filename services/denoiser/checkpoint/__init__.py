"""Checkpoints on disk: weights, parameter names, LoRA adapters and configuration."""
