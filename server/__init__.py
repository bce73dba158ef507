"""The Flower ServerApp: trusted with nothing."""
