"""Turns: whose token it is, and running statistics."""
