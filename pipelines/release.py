"""Ship trained networks with the package: ``python -m pipelines.release --study NAME [--bits B] [RUN_ID …]``.

Every complete training chosen is packed, loaded back and evaluated, and must reach the test accuracy that was
tracked. `README.md`, beside the networks, is made from what their folders hold, so that releases add up.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import HydraException

from analysis.cells import bits_order, newest
from analysis.store import ArtifactError, artifact, default_uri, load_runs
from pipelines import settings
from pipelines.errors import InputError
from pipelines.released import departures
from pipelines.train import ARTIFACT
from qnn.checkpoint import WEIGHTS, CheckpointError, read_description, rebuild, save_packed
from qnn.data import ImageData
from qnn.evaluation import evaluate
from qnn.packing import packed_length
from qnn.released import FOLDER, descriptions

README = "README.md"
_INTRODUCTION = """# Released networks

    python -m pipelines.attack weights=released model=MODEL data=DATA bits=BITS training.seed=SEED

attacks a network of this folder; where there are several of that kind, `training=RECIPE` says which. Nothing is
trained. Weights of k-bit layers are k-bit codes, everything else is float32; *of float32* is the size beside that of
the same network with all weights in float32. Each network was loaded back from its file and reached exactly the
accuracy of its training run.

Written by `python -m pipelines.release`."""


def choose(
    uri: str,
    *,
    studies: Sequence[str] = (),
    models: Sequence[str] = (),
    bits: Sequence[str] = (),
    run_ids: Sequence[str] = (),
) -> list[dict[Any, Any]]:
    """The newest complete training of each network in a tracking store, as `load_runs` gives them.

    Raises:
        InputError: there are none, or none for one of the names given.
    """
    try:
        runs = load_runs("train", uri, studies)
    except LookupError as error:
        raise InputError(error.args[0]) from error
    for column, wanted in (("run_id", run_ids), ("params.model", models), ("params.bits", bits)):
        if absent := sorted(set(wanted) - set(runs.get(column, []))):
            raise InputError(f"no complete training of {column.removeprefix('params.')} {', '.join(absent)} in {uri}")
        runs = runs[runs[column].isin(wanted)] if wanted else runs
    if runs.empty:
        raise InputError(f"no complete trainings in {uri} are what was asked for: launch pipelines.train first")
    return newest(runs).to_dict("records")


def release(run: dict[Any, Any], uri: str, out: Path) -> Path:
    """Pack the network of a training run into a folder in `out`, once it is known to do what it did there.

    Raises:
        ArtifactError: the run's network cannot be had.
        InputError: another accuracy than tracked, other data, or the folder holds another training.
    """
    with artifact(uri, run["run_id"], ARTIFACT) as stored, tempfile.TemporaryDirectory(dir=out) as scratch:
        described = read_description(stored)
        target = out / folder_name(described)
        if target.exists() and read_description(target)["fingerprint"] != described["fingerprint"]:
            raise InputError(f"{target} holds a network of another training than run {run['run_id']}: delete it first")
        data = _data_of(run, described["data_digest"])
        packed = Path(scratch) / target.name
        save_packed(packed, rebuild(stored), {**described, "test_images": len(data.test)})
        accuracy, tracked = evaluate(rebuild(packed), data.test)["accuracy"], run["metrics.test_accuracy"]
        if accuracy != tracked:
            raise InputError(f"{target.name} has test accuracy {accuracy}, its run {run['run_id']} {tracked}")
        shutil.rmtree(target, ignore_errors=True)
        packed.rename(target)
    return target


def folder_name(described: dict[str, Any]) -> str:
    """As in ``mnist_a-mnist-FP-clip_only-mnist_fast-seed0``."""
    controls = [setting.partition("=")[2] for setting in departures(described)]
    training = described["training"]
    names = [described["model"], described["data"], described["bits"], *controls, training["name"]]
    return "-".join([*names, f"seed{training['seed']}"])


def _data_of(run: dict[Any, Any], digest: str) -> ImageData:
    """The data set a run was trained on, with the settings it had there, from where data lies now."""
    own = {name.removeprefix("params."): value for name, value in run.items() if name.startswith("params.data.")}
    overrides = [f"{name}={value}" for name, value in own.items() if isinstance(value, str)]
    try:
        cfg = settings.composed(f"data={run['params.data']}", *overrides)
    except HydraException as error:
        raise InputError(f"the data of run {run['run_id']}: {settings.one_line(error)}") from error
    data = settings.load_data(cfg)
    if data.digest != digest:
        raise InputError(f"run {run['run_id']} was not trained on the {data.name} found here: set QNN_DATA to that")
    return data


def overview(folder: Path) -> str:
    """What `folder` holds, as Markdown: a row per network, and sizes by width."""
    listed = sorted(descriptions(folder).items(), key=lambda item: _order(item[1]))
    rows = pd.DataFrame([_row(path, described) for path, described in listed])
    networks = pd.DataFrame(
        {
            **rows[["model", "data", "bits", "recipe", "epochs", "training seed"]].astype(str),
            "test accuracy": [f"{a:.2%} (n = {n:,})" for a, n in zip(rows["accuracy"], rows["images"], strict=True)],
            **_sizes(rows),
            "SHA-256": "`" + rows["sha256"].str[:12] + "`",
        }
    )
    by_width = rows.groupby("bits", sort=False)[["bytes", "float32 bytes"]].sum()
    by_width = by_width.loc[sorted(by_width.index, key=bits_order)]
    by_width.loc["all"] = by_width.sum()
    counts = [*rows["bits"].value_counts()[by_width.index[:-1]], len(rows)]
    widths = pd.DataFrame({"bits": by_width.index, "networks": counts, **_sizes(by_width.reset_index())})
    return "\n\n".join([_INTRODUCTION, _markdown(networks), "## Sizes by width", _markdown(widths)]) + "\n"


def _row(path: Path, described: dict[str, Any]) -> dict[str, Any]:
    size, training = (path / WEIGHTS).stat().st_size, described["training"]
    return {
        "model": " ".join([described["model"], *departures(described)]),
        "data": described["data"],
        "bits": described["bits"],
        "recipe": training["name"],
        "epochs": training["epochs"],
        "training seed": training["seed"],
        "accuracy": described["test_accuracy"],
        "images": described["test_images"],
        "bytes": size,
        "float32 bytes": size + sum(_saved(**form) for form in described["packed"].values()),
        "sha256": described["sha256"],
    }


def _saved(bits: int, shape: Sequence[int]) -> int:
    """The bytes that a packed weight tensor takes less than in float32; at one bit it has a scale, too."""
    count = math.prod(shape)
    return 4 * count - packed_length(count, bits) - (4 if bits == 1 else 0)


def _sizes(rows: pd.DataFrame) -> dict[str, list[str]]:
    shares = rows["bytes"] / rows["float32 bytes"]
    return {"bytes": [f"{size:,}" for size in rows["bytes"]], "of float32": [f"{share:.1%}" for share in shares]}


def _order(described: dict[str, Any]) -> tuple[object, ...]:
    training = described["training"]
    kind = (described["model"], described["data"], departures(described), bits_order(described["bits"]))
    return *kind, training["name"], training["seed"]


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)


def main(arguments: list[str] | None = None) -> int:
    """Release networks; the exit status is 1 where one of them cannot be, those before it are written."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.release", description=__doc__.split("\n\n")[0])
    parser.add_argument("run_ids", nargs="*", metavar="RUN_ID", help="only these training runs")
    parser.add_argument("--study", action="append", default=[], help="only runs of this study (may be repeated)")
    parser.add_argument("--model", action="append", default=[], help="only this model (may be repeated)")
    parser.add_argument("--bits", action="append", default=[], help="only this width (may be repeated)")
    parser.add_argument("--tracking-uri", default=default_uri(), help="MLflow store (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    uri, out = chosen.tracking_uri, chosen.out
    try:
        runs = choose(uri, studies=chosen.study, models=chosen.model, bits=chosen.bits, run_ids=chosen.run_ids)
        out.mkdir(parents=True, exist_ok=True)
        for run in runs:
            folder = release(run, uri, out)
            size = (folder / WEIGHTS).stat().st_size
            print(f"{folder.name}: test accuracy {run['metrics.test_accuracy']:.2%}, {size:,} bytes", flush=True)
            (out / README).write_text(overview(out))
    except (InputError, CheckpointError, ArtifactError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written to {out.absolute()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
