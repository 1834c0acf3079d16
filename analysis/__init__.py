"""Tracked runs -> data frames -> tables."""
