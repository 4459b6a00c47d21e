"""Level 1: primitives, arrays in and arrays out, no config objects."""
