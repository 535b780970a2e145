"""What has been done, exactly once: leases, records of shards, manifests, and the table that readers see."""
