"""Where examples come from: anything with a length and an index."""
