"""Denoiser service: owns the accelerator and runs the plans of the scheduler."""
