"""Pages that compare runs, and work offline."""
