"""Fitting a model to cases, with and without privacy."""
