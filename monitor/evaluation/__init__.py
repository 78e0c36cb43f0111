"""Does it hold: the battery of claims about a bank, and its report."""
