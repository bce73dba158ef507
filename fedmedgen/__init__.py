"""Federated generative models for radiographs under patient-level differential privacy."""

__version__ = "0.1.0"
