"""The demo of `make run`: a dozen prompts, with and without reuse."""
