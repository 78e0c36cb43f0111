"""Does too much of it bend answers."""
