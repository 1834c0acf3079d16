"""A stored network as an MLflow model: images in, logits out (MLflow loads this file, nothing is unpickled)."""

from __future__ import annotations

from pathlib import Path

import mlflow.models
import numpy as np
import torch
from mlflow.pyfunc import PythonModel

from qnn.checkpoint import rebuild
from qnn.evaluation import predict


class StoredNetwork(PythonModel):
    """Takes float32 images (n, channels, height, width) in [0, 1], returns logits (n, classes)."""

    def load_context(self, context) -> None:
        self.net = rebuild(Path(context.artifacts["network"]))

    def predict(self, context, model_input: np.ndarray, params=None) -> np.ndarray:
        return predict(self.net, torch.from_numpy(np.asarray(model_input, dtype=np.float32))).numpy()


mlflow.models.set_model(StoredNetwork())
