"""What people do with data sets and trained weights beside training."""
