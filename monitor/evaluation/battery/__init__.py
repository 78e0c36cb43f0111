"""A bank under its own corpus: the battery, its report, and what certifies a bank."""
