"""A run: its loop and state, what its folder holds, and how it is judged."""
