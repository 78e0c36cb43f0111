"""From a corpus and a model to a bank."""
