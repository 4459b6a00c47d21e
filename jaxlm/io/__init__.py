"""Level 5: files: checkpoints, metric logs, run folders, provenance."""
