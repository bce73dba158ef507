"""The program fedmedgen."""
