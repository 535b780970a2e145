"""What this machine does with the user's checkpoint and corpus, and how near that is to what it could do."""
