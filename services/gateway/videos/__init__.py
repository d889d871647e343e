"""The `/v1/videos` API: parsing of requests, the video object, and the endpoints."""
