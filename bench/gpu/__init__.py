"""What the network, its backends and its kernel do on one GPU."""
