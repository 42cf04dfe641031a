"""Sources of examples: anything with a length and an index."""
