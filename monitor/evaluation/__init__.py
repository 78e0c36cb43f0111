"""Does it hold: a package for each suite, and what they share: the subject, results with their bars, the page."""
