"""Level 1: schedules and optimizers."""
