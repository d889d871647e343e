"""What two services must agree on: identity, noise schedules, tensors and blobs on the wire."""
