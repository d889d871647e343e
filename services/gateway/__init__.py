"""Gateway: the OpenAI-style `/v1/videos` over HTTP, served from the scheduler's gRPC API. It holds no
state."""
