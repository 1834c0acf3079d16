"""Measurements of speed and memory; no test runs them."""
