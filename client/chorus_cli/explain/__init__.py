"""`chorus explain`: what a generation reused, what it computed and why, as text or as a picture."""
