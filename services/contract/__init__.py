"""Definitions that two services must share: identity, noise schedules, tensors and blobs on the wire."""
