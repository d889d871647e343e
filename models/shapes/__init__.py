"""The model that Chorus ships: short videos of moving shapes, small enough to be trained on a CPU."""
