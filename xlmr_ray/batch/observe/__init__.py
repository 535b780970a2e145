"""What a run says of itself: metrics, lineage, and its report."""
