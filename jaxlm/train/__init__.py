"""Level 4: state, step, ways to run a step, loop."""
