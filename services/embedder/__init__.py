"""Embedder service: retrieval vectors, text conditioning and alignment of prompts."""
