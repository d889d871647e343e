"""Model: its specification, the loaded model, and the predictor that runs it on a backend."""
