"""Radiographs as cases: where they come from, how they are split, what was set aside."""
