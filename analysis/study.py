"""The tracked runs of a study in one piece: read from a store, or from a folder that is committed.

``python -m analysis.study --study NAME … --out results/runs`` copies what tables, figures and verdicts need
out of a tracking store, so that they can be made again where the store is not. It adds to what the folder
holds, so that a study can be made on several machines, one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from analysis.cells import newest
from analysis.store import NoArtifactError, artifact, default_uri, load_runs
from analysis.tables import provenance

KINDS = ("train", "attack", "transfer", "alignment", "sensitivity")
TABLES = {
    "images": ("attack", "per_image.json"),
    "progress": ("attack", "progress.json"),
    "transfers": ("transfer", "transfer.json"),
    "transferred": ("transfer", "transferred.json"),
    "alignments": ("alignment", "alignment.json"),
    "sensitivities": ("sensitivity", "sensitivity.json"),
}
PICTURES = 10
_PLACES = ("work=", "tracking.", "data.root=")
_PICTURED = {"fgsm": "first", "boundary": "farthest"}
_PATCHES = "patch_"
_IMAGE_COLUMNS = [
    "fingerprint", "index", "label", "adv_prediction", "evaded", "success", "gave_up", "label_rank", "l0", "l2", "linf",
    "correlation",
]  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Complete runs, the newest of each cell, and what hangs on them by `fingerprint`.

    Attributes:
        train, attack, transfer, alignment, sensitivity: one row per run, columns as `analysis.store.load_runs` gives
            them.
        images: one row per attacked image, see `attacks.metrics.per_image_record`.
        progress: one row per kept iteration of an attack.
        transfers: one row per transfer cell and target network.
        transferred: one row per transfer cell, target and image.
        alignments: one row per alignment run, pair of widths and null, see `pipelines.alignment.alignment_table`.
        sensitivities: one row per sensitivity run, width, patch or noise, and place.
        pictures: adversarial images, uint8: ``FINGERPRINT.first`` (k, c, h, w) of FGSM, ``.farthest`` of Boundary,
            those with the largest L2; where there are snapshots, ``.snapshots`` (iterations, k, c, h, w) of the
            first images after ``.iterations``, and the ``.clean`` ones; of a universal patch ``.patch`` (c, k, k) and
            the ``.first`` patched images.
    """

    train: pd.DataFrame = field(default_factory=pd.DataFrame)
    attack: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfer: pd.DataFrame = field(default_factory=pd.DataFrame)
    alignment: pd.DataFrame = field(default_factory=pd.DataFrame)
    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    images: pd.DataFrame = field(default_factory=pd.DataFrame)
    progress: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfers: pd.DataFrame = field(default_factory=pd.DataFrame)
    transferred: pd.DataFrame = field(default_factory=pd.DataFrame)
    alignments: pd.DataFrame = field(default_factory=pd.DataFrame)
    sensitivities: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def from_store(uri: str, studies: Sequence[str] = ()) -> Study:
    """Read the runs, their tables and their first pictures.

    Raises:
        LookupError: the store has no such study.
    """
    runs = {kind: _newest(load_runs(kind, uri, studies)) for kind in KINDS}
    tables = {name: _tables(uri, runs[kind], path) for name, (kind, path) in TABLES.items()}
    tables["images"] = _slim(tables["images"])
    pictures: dict[str, np.ndarray] = {}
    images = dict(list(tables["images"].groupby("fingerprint", observed=True)))
    for row in _progress(runs["attack"], "pictures"):
        pictures |= _pictures(uri, row, images.get(row["fingerprint"]))
    return Study(**runs, **tables, pictures=pictures)


def merged(old: Study, new: Study) -> Study:
    """Both studies in one; of a cell that both have, the one of `new`."""
    replaced = {key for kind in KINDS for key in getattr(new, kind).get("fingerprint", ())}

    def together(name: str) -> pd.DataFrame:
        before, after = getattr(old, name), getattr(new, name)
        kept = before[~before["fingerprint"].isin(replaced)] if len(before) else before
        parts = [part.astype({"fingerprint": str}) for part in (kept, after) if len(part)]
        return pd.concat(parts, ignore_index=True) if parts else max(before, after, key=lambda empty: empty.shape[1])

    tables = {name: together(name) for name in (*KINDS, *TABLES)}
    tables["images"] = _slim(tables["images"])
    kept = {name: images for name, images in old.pictures.items() if name.partition(".")[0] not in replaced}
    return Study(**tables, pictures=kept | new.pictures)


def without(study: Study, fingerprints: Collection[str]) -> Study:
    """A study without the runs of these fingerprints, and without those of their networks, as target too."""

    def of_them(named: pd.Series) -> pd.Series:
        return named.fillna("").map(lambda text: any(name.partition("@")[0] in fingerprints for name in text.split()))

    gone = set(fingerprints)
    for kind in KINDS:
        runs = getattr(study, kind)
        if "params.network" in runs:
            gone.update(runs.loc[of_them(runs["params.network"]), "fingerprint"])
    if "target_network" in study.transfers:
        gone.update(study.transfers.loc[of_them(study.transfers["target_network"]), "fingerprint"])
    parts = {name: getattr(study, name) for name in (*KINDS, *TABLES)}
    kept = {name: part[~part["fingerprint"].isin(gone)] if len(part) else part for name, part in parts.items()}
    pictures = {name: images for name, images in study.pictures.items() if name.partition(".")[0] not in gone}
    return Study(**kept, pictures=pictures)


def save(study: Study, folder: Path) -> None:
    """Write a study as Parquet files and one safetensors file of pictures, each with its `provenance`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"provenance": json.dumps(_provenance(study))}
    for name in (*KINDS, *TABLES):
        table = pyarrow.Table.from_pandas(getattr(study, name), preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")
    save_file(study.pictures, folder / "pictures.safetensors", metadata=told)


def _provenance(study: Study) -> dict[str, Any]:
    """What made a study's files: the command, and of its runs how many, when, and on which code and machines.

    The overrides of each run stand in its row.
    """
    runs = pd.concat([getattr(study, kind) for kind in KINDS])
    facts = provenance(runs) if "commit" in runs else {}
    facts.pop("overrides", None)
    return {"command": "python -m analysis.study", **facts}


def load(folder: Path) -> Study:
    """Read what `save` wrote.

    Raises:
        LookupError: there is no study in the folder, or a file of it is damaged.
    """
    if not (folder / "attack.parquet").is_file():
        raise LookupError(f"{folder} holds no exported study: make one with python -m analysis.study")
    written = [name for name in (*KINDS, *TABLES) if (folder / f"{name}.parquet").is_file()]
    path = folder
    try:
        read = {}
        for name in written:
            path = folder / f"{name}.parquet"
            read[name] = pd.read_parquet(path)
        path = folder / "pictures.safetensors"
        return Study(**read, pictures=load_file(path))
    except (OSError, pyarrow.ArrowException, SafetensorError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise LookupError(f"{path} {reason}: take the committed one, or export anew with --replace") from error


def _newest(runs: pd.DataFrame) -> pd.DataFrame:
    """The newest run of each cell, without the places where its machine kept things."""
    if runs.empty:
        return runs
    return newest(runs).reset_index(drop=True).assign(overrides=lambda kept: kept["overrides"].map(_without_places))


def _without_places(overrides: str) -> str:
    """
    >>> _without_places("work=/scratch trainer.threads=1 tracking.artifacts=/runs")
    'trainer.threads=1'
    """
    return " ".join(word for word in overrides.split() if not word.startswith(_PLACES))


def _progress(runs: pd.DataFrame, what: str) -> Iterator[pd.Series]:
    for _, row in tqdm(runs.iterrows(), total=len(runs), desc=what, disable=not sys.stderr.isatty()):
        yield row


def _tables(uri: str, runs: pd.DataFrame, path: str) -> pd.DataFrame:
    """One artifact table of all runs that have it, with the runs' fingerprints."""
    found = []
    for row in _progress(runs, path):
        with suppress(NoArtifactError), artifact(uri, row["run_id"], path) as table:
            split = json.loads(table.read_text())
            found.append(pd.DataFrame(split["data"], columns=split["columns"]).assign(fingerprint=row["fingerprint"]))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"fingerprint": pd.Series(dtype=str)})


def _slim(images: pd.DataFrame) -> pd.DataFrame:
    """The columns that analyses use, in types of their size."""
    images = images.reindex(columns=_IMAGE_COLUMNS)
    narrow = {"index": "int32", "label": "int16", "adv_prediction": "int16", "label_rank": "Int8", "l0": "int32"}
    floats = dict.fromkeys(("l2", "linf", "correlation"), "float32")
    flags = dict.fromkeys(("evaded", "success", "gave_up"), bool)
    return images.astype({**narrow, **floats, **flags, "fingerprint": "category"}) if len(images) else images


def _pictures(uri: str, row: pd.Series, images: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """The first adversarial examples of a run and their snapshots; of Boundary the farthest, too."""
    found: dict[str, np.ndarray] = {}
    attack = row["params.attack"]
    if attack in _PICTURED or (attack.startswith(_PATCHES) and row["params.seed"] == "0"):
        with suppress(NoArtifactError), artifact(uri, row["run_id"], "examples/adversarial.safetensors") as examples:
            found |= _of_patches(examples) if attack.startswith(_PATCHES) else _of_images(examples, attack, images)
    with suppress(NoArtifactError), artifact(uri, row["run_id"], "examples/snapshots.safetensors") as snapshots:
        stored = load_file(snapshots)
        found["clean"] = _bytes(stored["clean"][:PICTURES])
        found["snapshots"] = _bytes(stored["images"][:, :PICTURES])
        found["iterations"] = stored["iterations"]
    return {f"{row['fingerprint']}.{name}": pictures for name, pictures in found.items()}


def _of_patches(examples: Path) -> dict[str, np.ndarray]:
    """A universal patch and the first images with it; nothing of patches for one image each."""
    with safe_open(examples, framework="numpy") as stored:
        if "patch" not in set(stored.keys()) or len(stored.get_slice("patch").get_shape()) != 3:
            return {}
        return {
            "patch": _bytes(stored.get_tensor("patch")),
            "first": _bytes(stored.get_slice("x_adv")[:PICTURES]),
        }


def _of_images(examples: Path, attack: str, images: pd.DataFrame | None) -> dict[str, np.ndarray]:
    if images is None:
        return {}
    l2 = images["l2"].where(images["success"], 0).to_numpy()
    order = np.argsort(-l2, kind="stable") if attack == "boundary" else np.arange(len(l2))
    with safe_open(examples, framework="numpy") as stored:
        return {_PICTURED[attack]: _bytes(stored.get_tensor("x_adv")[order[:PICTURES]])}


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.round(images * 255).astype(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.study", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", action="append", default=[], help="only runs of this study (may be repeated)")
    parser.add_argument("--tracking-uri", default=default_uri(), help="MLflow store (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/runs"), help="folder (default: %(default)s)")
    parser.add_argument("--replace", action="store_true", help="drop what the folder holds instead of adding to it")
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="FINGERPRINT",
        help="drop this run, and of a training all runs of its network, because another has taken its place"
        " (may be repeated)",
    )
    chosen = parser.parse_args(arguments)
    try:
        study = from_store(chosen.tracking_uri, chosen.study)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    if study.attack.empty and study.train.empty:
        print(f"error: no complete runs in {chosen.tracking_uri}: launch a sweep first", file=sys.stderr)
        return 1
    if not chosen.replace:
        with suppress(LookupError):
            study = merged(load(chosen.out), study)
    study = without(study, chosen.forget)
    save(study, chosen.out)
    counts = ", ".join(f"{len(getattr(study, kind))} {kind}" for kind in KINDS)
    print(f"{counts} runs written to {chosen.out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
