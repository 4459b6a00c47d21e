"""Level 3: what a trained model is worth, in numbers."""
