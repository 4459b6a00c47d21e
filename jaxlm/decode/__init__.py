"""Level 3: generation from a LanguageModel."""
