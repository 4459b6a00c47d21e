"""Level 6: one file a job; may print and start processes."""
