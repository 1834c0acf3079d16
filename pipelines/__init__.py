"""What a user launches: train, attack and evaluate, alone or as Hydra sweeps tracked in MLflow."""
