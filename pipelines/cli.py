"""The entry points of all pipelines: Hydra around them, and errors a person can read."""

from __future__ import annotations

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pipelines.claims import SWEEP_FOLDER
from pipelines.settings import one_line
from pipelines.status import stop_watching


def launch(name: str) -> int:
    """Run a pipeline with the command line's overrides; returns the exit status."""
    from pipelines.jobs import task
    from pipelines.tracking import detach_from_mlproject

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach this function instead of Hydra's printer
    detach_from_mlproject()
    try:
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(task)()
        finally:
            stop_watching()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    except KeyboardInterrupt:
        from pipelines.sweep import interrupted

        interrupted()
        return 130
    except Exception as error:
        if SWEEP_FOLDER not in os.environ:
            raise
        from pipelines.sweep import launcher_failed

        launcher_failed(error)
        return 1
    return 0


def attack() -> int:
    return launch("attack")


def train() -> int:
    return launch("train")


def evaluate() -> int:
    return launch("evaluate")


def transfer() -> int:
    return launch("transfer")


def alignment() -> int:
    return launch("alignment")


def sensitivity() -> int:
    return launch("sensitivity")
