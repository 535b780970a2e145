"""Linear layers in eight bits."""
