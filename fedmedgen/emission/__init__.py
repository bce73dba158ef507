"""Synthetic sets from a trained generator."""

from fedmedgen.emission.sampling import emit
from fedmedgen.emission.writing import write_set

__all__ = ["emit", "write_set"]
