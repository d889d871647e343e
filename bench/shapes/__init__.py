"""Quality and speed of the model of shapes."""
