"""Does pushing on it change behaviour predictably, and at what cost: the knob."""
