"""Sees from a deployed assistant's hidden states when its affect exceeds what situation and policy warrant."""

__version__ = "0.1.0"
