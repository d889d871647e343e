"""What runs the network besides plain torch."""
