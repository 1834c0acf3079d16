"""Quantised networks: quantisers, layers, models, data sets and training."""
