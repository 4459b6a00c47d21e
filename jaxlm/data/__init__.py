"""Level 1: corpora, token files, the order of examples, batches."""
