"""Reading a large store: ``python -m benchmarks.store --uri sqlite:////tmp/large.db --out benchmarks/store.md``.

Fills a store with complete attack runs and times whole processes on them: ``python -m analysis.tables`` on a study of
10,000 runs, and a sweep of 1,000 cells that are all complete. The runs have the parameters, tags and fingerprints
that real sweeps give them, and made-up metrics; they are written as rows, in the schema MLflow has made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from omegaconf import DictConfig
from sqlalchemy import create_engine, insert

from analysis.store import complete_fingerprints
from pipelines import attack, settings, train
from pipelines.environment import environment_tags
from pipelines.fingerprints import fingerprint
from pipelines.sweep import _compose_all, _jobs
from pipelines.tracking import git_tags

SWEEP = ["model=mnist_a,mnist_b", "bits=FP,1,2,4,8", "attack=fgsm,jsma,uap,cw,boundary"]
ATTACK_SEEDS, TRAINING_SEEDS = 20, 10
STUDY = "large"
METRICS = [
    "adversarial_accuracy_low", "adversarial_accuracy_high", "evasion_rate", "attack_success_rate", "gave_up",
    "l0_all", "l0", "l0_median", "l1_all", "l1", "l1_median", "l2_all", "l2", "l2_median", "linf_all", "linf",
    "linf_median", "zero_gradients", "zero_gradient_values", "clean_accuracy", "forwards_per_image",
    "backwards_per_image", "seconds",
]  # fmt: skip


def sweep_overrides(training_seeds: int) -> list[str]:
    """The overrides of a sweep of 1,000 cells for each training seed."""
    seeds = [f"seed={','.join(map(str, range(ATTACK_SEEDS)))}"]
    trained = [f"training.seed={','.join(map(str, range(training_seeds)))}"] if training_seeds > 1 else []
    return [*SWEEP, *seeds, *trained, f"study={STUDY}"]


def configs(overrides: list[str]) -> list[DictConfig]:
    with initialize_config_module("conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("attack", overrides, run_mode=RunMode.MULTIRUN)
        return _compose_all(config, _jobs(config))


def fill(database: str, experiment: str, cells: list[DictConfig]) -> None:
    """Write a complete attack run for each cell."""
    engine = create_engine(database)
    rows = list(_runs(cells, experiment))
    with engine.begin() as connection:
        for table in (SqlRun, SqlTag, SqlParam, SqlMetric, SqlLatestMetric):
            connection.execute(insert(table), [row for run in rows for row in run[table]])
    engine.dispose()


def _runs(cells: list[DictConfig], experiment: str) -> Iterator[dict[Any, list[dict[str, Any]]]]:
    numbers = random.Random(0)
    now = int(time.time() * 1000)
    for i, cfg in enumerate(cells):
        run_id, data, identity = uuid.uuid4().hex, settings.load_data(cfg), attack.identity(cfg)
        params = {**train.parameters(cfg, data), **attack._parameters(cfg), "network": identity["network"]}
        tags = {
            "kind": "attack",
            "fingerprint": fingerprint(identity),
            "mlflow.runName": attack.label(cfg),
            "mlflow.note.content": f"{attack.label(cfg)} on {cfg.n} images of {data.name}.",
            "mlflow.source.name": "pipelines.attack",
            "mlflow.parentRunId": uuid.UUID(int=i // 1000).hex,
            "source_run_id": uuid.uuid4().hex,
            "mlflow.loggedArtifacts": json.dumps([{"path": attack.TABLE, "type": "table"}]),
            "mlflow.loggedImages": "True",
            **git_tags(),
            **environment_tags(),
            "complete": "true",
        }
        metrics = {"n": 1000, "adversarial_accuracy": numbers.randrange(1001) / 1000}
        metrics |= {name: numbers.random() for name in METRICS}
        values = [
            {"run_uuid": run_id, "key": key, "value": value, "timestamp": now, "step": 0, "is_nan": False}
            for key, value in metrics.items()
        ]
        run = {
            "run_uuid": run_id,
            "name": tags["mlflow.runName"],
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": "FINISHED",
            "start_time": now + i,
            "end_time": now + i + 1000,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{experiment}/{run_id}/artifacts",
            "experiment_id": int(experiment),
        }
        yield {
            SqlRun: [run],
            SqlTag: [{"run_uuid": run_id, "key": key, "value": value} for key, value in tags.items()],
            SqlParam: [{"run_uuid": run_id, "key": key, "value": str(value)} for key, value in params.items()],
            SqlMetric: values,
            SqlLatestMetric: values,
        }


def seconds(folder: Path, uri: str, *command: str) -> tuple[float, float]:
    """Wall time and processor time of ``python -m command``."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        check=True,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(uri: str, repeats: int) -> Iterator[dict[str, Any]]:
    stored = len(complete_fingerprints(uri))
    commands = {
        "a sweep of 1,000 cells, all complete": ("pipelines.attack", "-m", *sweep_overrides(1)),
        "tables": ("analysis.tables", "--quiet"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands.items():
            taken = [seconds(Path(folder), uri, *command) for _ in range(repeats)]
            walls, processor = (", ".join(f"{s:.1f}" for s in times) for times in zip(*taken, strict=True))
            yield {"runs in the store": stored, "command": name, "seconds": walls, "of the processor": processor}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--uri", required=True, help="a new SQLite file or an empty server, or one filled before")
    options.add_argument("--database", help="the server's database, where the runs are written to")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if not complete_fingerprints(chosen.uri):
        experiment = MlflowClient(chosen.uri).create_experiment(STUDY)
        fill(chosen.database or chosen.uri, experiment, configs(sweep_overrides(TRAINING_SEEDS)))
    table = pd.DataFrame(measure(chosen.uri, chosen.repeats)).to_markdown(index=False, disable_numparse=True)
    print(table)
    if chosen.out:
        chosen.out.write_text(f"# Reading a large store\n\n{about()}\n\n{table}\n")


def about() -> str:
    load = os.getloadavg()[0]
    tags = environment_tags()
    return f"{date.today()}, {tags['hardware']}, {tags['versions']}; load average at the end {load:.1f}."


if __name__ == "__main__":
    main()
