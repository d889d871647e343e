"""GPU benchmark of the network, its backends and the amplified attention kernel."""
