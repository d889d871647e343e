"""The console: pages for people, made on the server from the scheduler's gRPC API. It holds no state."""
