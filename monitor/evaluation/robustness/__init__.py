"""Does it hold: the battery, perturbations, words searched for that hide an emotion."""
