"""What a run was computed on and with."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "pytorch-lightning", "adversarial-robustness-toolbox", "mlflow")


@functools.cache
def environment_tags() -> dict[str, str]:
    """`hardware` (processor and cores, and the GPU if there is one) and `versions`."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    hardware = f"{_processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    return {"hardware": hardware, "versions": ", ".join([f"Python {platform.python_version()}", *versions])}


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
