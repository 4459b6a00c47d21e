"""Level 3: FLOPs and what hardware could do."""
