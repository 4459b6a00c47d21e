"""Level 5: what a person looks at: progress, figures, report pages."""
