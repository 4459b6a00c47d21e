"""The corpus that comes with the package; see PROVENANCE.md beside it."""
