"""`chorus explain`: reports what a generation reused and computed, and why, as text or as a picture."""
