"""`generate`: prompts to texts."""
