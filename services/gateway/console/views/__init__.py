"""What the pages show, as pure functions of the SDK's values."""
