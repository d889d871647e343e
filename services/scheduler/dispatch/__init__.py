"""Dispatch of queued jobs: attempts, retries, and the run on the denoiser."""
