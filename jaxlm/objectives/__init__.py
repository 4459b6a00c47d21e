"""Level 3: losses over logits, as sums and weights."""
