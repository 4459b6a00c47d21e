"""The corpus that comes with the package; see PROVENANCE.md beside it."""

SEPARATOR = "\f\n"  # between two plays; a form feed occurs in none of them
FILE_NAME = "shakespeare.txt.xz"
