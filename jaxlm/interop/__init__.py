"""Level 5: models of other libraries, in and out: Hugging Face folders, GGUF, PEFT adapters."""
