"""The Hydra configuration tree (`pkg://conf`)."""
