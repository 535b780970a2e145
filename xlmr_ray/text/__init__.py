"""Small texts for people: counted nouns, and texts without secrets."""
