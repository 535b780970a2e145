"""One file a protocol, each thin over the service: bodies in, the task's answers out, errors in its own shape."""
