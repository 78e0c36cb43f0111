"""A small OpenAI-compatible chat server around a transformers model, with capture on."""
