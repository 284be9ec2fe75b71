"""Data sets: one reader per format, batches prepared in the background."""
