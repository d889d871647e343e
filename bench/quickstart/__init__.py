"""Demo of `make run`: a dozen prompts, generated with and without reuse."""
