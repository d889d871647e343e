"""What every process and the client need: errors, channels, telemetry, limits, streamed blobs."""
