"""What a route may show, and the life of alerts."""
