"""Level 0: parameters, trees, configs and metrics; nothing here knows of language."""
