"""Iceberg tables, by pyiceberg: as a source, and as a finished run is committed to them."""
