"""What finished turns mean: over-index, mirroring."""
