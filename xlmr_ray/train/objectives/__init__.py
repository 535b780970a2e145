"""What a head is trained for: a file a task."""
