"""From a folder, an object store's prefix or a hub id to tensors in a module, and back."""
