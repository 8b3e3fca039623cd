"""Training loops, one file an algorithm, around one loop core."""
