"""Speed as ratios against named peers; each module is a command, `python -m benchmarks.NAME`."""
