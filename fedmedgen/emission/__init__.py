"""Synthetic sets from a trained generator."""
