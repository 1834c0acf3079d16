"""A package, so that the folders `qnn` and `attacks` in here do not shadow the packages they test."""
