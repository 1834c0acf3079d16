"""The runs of one sweep, or of a whole study, as tables and figures of their own."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from analysis import figures, tables
from analysis.cells import cell_table, newest
from analysis.store import NoArtifactError, artifact, load_runs
from analysis.tables import PaperTable

CELLS = "cells.json"


@dataclass(frozen=True)
class Found:
    """Complete runs of a store that belong together, and what they give.

    Attributes:
        parent: the sweep's parent run; None for a study.
        train, attack, transfer: one row per run, columns as `analysis.store.load_runs` gives them.
    """

    uri: str
    title: str
    parent: Run | None
    train: pd.DataFrame
    attack: pd.DataFrame
    transfer: pd.DataFrame

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, columns `analysis.cells.TIDY`."""
        return cell_table(self.attack)

    def runs(self) -> pd.DataFrame:
        return pd.concat([self.attack, self.transfer, self.train], ignore_index=True)

    def tables(self) -> list[PaperTable]:
        return tables.found(self.cells, self.train, self.transfer)

    def figures(self) -> list[figures.Drawing]:
        return figures.against_bits(self.cells)


def newest_sweep(uri: str) -> str:
    """The run id of the sweep that was begun last.

    Raises:
        LookupError: there is none.
    """
    client = MlflowClient(uri)
    studies = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(studies, "tags.kind = 'sweep'", max_results=1, order_by=["start_time DESC"])
    if not found:
        raise LookupError(f"no sweep in {uri}: launch one with python -m pipelines.attack -m")
    return str(found[0].info.run_id)


def of_sweep(uri: str, run_id: str) -> Found:
    """The runs of a sweep's cells, also of those that were complete before it, and of their networks.

    Raises:
        LookupError: there is no such sweep.
    """
    client = MlflowClient(uri)
    try:
        parent = client.get_run(run_id)
    except MlflowException as error:
        raise LookupError(f"no run {run_id} in {uri}") from error
    if parent.data.tags.get("kind") != "sweep":
        raise LookupError(f"run {run_id} is no sweep: name a parent run")
    planned = _planned(uri, run_id)
    attack, transfer = (_members(load_runs(kind, uri), planned, run_id) for kind in ("attack", "transfer"))
    networks = {str(key).partition("@")[0] for key in attack.get("params.network", ())}
    train = _members(load_runs("train", uri), planned | networks, run_id)
    return Found(uri, str(parent.info.run_name), parent, train, attack, transfer)


def of_study(uri: str, study: str) -> Found:
    """All complete runs of a study.

    Raises:
        LookupError: there is no such study.
    """
    loaded = [load_runs(kind, uri, [study]) for kind in ("train", "attack", "transfer")]
    return Found(uri, f"study {study}", None, *(newest(runs) if len(runs) else runs for runs in loaded))


def _members(runs: pd.DataFrame, keys: set[str], parent: str) -> pd.DataFrame:
    """The newest run of each of the cells, and of what was run below the sweep's parent."""
    return newest(runs[runs["fingerprint"].isin(keys) | (runs["parent"] == parent)]) if len(runs) else runs


def _planned(uri: str, run_id: str) -> set[str]:
    """The fingerprints of a sweep's cells; none of a sweep that has not ended, whose runs are known by their parent."""
    with suppress(NoArtifactError), artifact(uri, run_id, CELLS) as cells:
        return set(json.loads(cells.read_text()))
    return set()
