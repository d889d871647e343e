"""Shared by every process and the client: errors, channels, telemetry, limits, streamed blobs."""
