"""Level 3: FLOPs and what hardware could do; intervals, claims and gradient norms of studies."""
