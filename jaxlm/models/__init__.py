"""Level 2: architectures as NamedTuples of pure functions."""
