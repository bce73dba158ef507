"""The promise to each patient and the mechanism that keeps it."""
