"""Jobs: states and transitions, the durable store, notifications and video files."""
