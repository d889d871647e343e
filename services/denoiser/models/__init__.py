"""Models: the network, its weights, its specification, and all of it loaded (`pipeline.LoadedModel`)."""
