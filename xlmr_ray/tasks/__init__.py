"""One file a task. Batch, service and Python call the same four methods."""
