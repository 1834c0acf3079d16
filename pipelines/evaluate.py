"""Evaluate a network: ``python -m pipelines.evaluate model=mnist_a bits=4 data=mnist examples=RUN_ID``.

Without `examples` on the clean test set; with them on stored adversarial examples, made on any network,
counting those images whose clean version this network gets right (the paper's transfer rule). The
network is one that is already trained, or `network=` a folder or MLflow run id.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from attacks import AdversarialExamples, load_examples, per_image_record, summarise
from pipelines import networks, settings, train
from pipelines.attack import EXAMPLES, TABLE
from pipelines.cells import FETCHED, leaf, open_tracker
from pipelines.errors import InputError
from pipelines.progress import say
from pipelines.results import Result
from pipelines.tracking import Tracker
from qnn.data import Split
from qnn.evaluation import EVALUATION_BATCH, evaluate, predict
from qnn.freezing import freeze

KIND = "evaluate"


def check(cfg: DictConfig) -> None:
    networks.check(cfg)
    data = settings.load_data(cfg)
    if not networks.is_stored(cfg) and open_tracker(cfg).find_complete(networks.trained_fingerprint(cfg, data)) is None:
        raise InputError(
            f"no trained {train.network_name(cfg)} on {data.name} with this recipe is stored:"
            " train it with pipelines.train, or name one with network="
        )
    if cfg.examples is not None:
        made_on = _examples(cfg).metadata.get("data_digest")
        if made_on != data.digest:
            raise InputError(f"examples={cfg.examples} were not made on this data set (data={cfg.data.name})")


def identity(cfg: DictConfig) -> dict[str, Any]:
    data = settings.load_data(cfg)
    examples = hashlib.sha256(_examples_path(cfg).read_bytes()).hexdigest() if cfg.examples is not None else None
    return {
        "kind": KIND,
        "network": networks.network_fingerprint(cfg, data),
        "data": data.digest,
        "examples": examples,
    }


def label(cfg: DictConfig) -> str:
    what = "the clean test set" if cfg.examples is None else f"examples of {_source(_examples(cfg))}"
    return f"{train.network_name(cfg)} on {what}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Evaluate one network and track it."""
    data = settings.load_data(cfg)
    target = networks.obtain(cfg, data, tracker, parent)
    device = settings.device(cfg)
    net = freeze(target.net).to(device)
    params = {**train.parameters(cfg, data), "network": target.description["fingerprint"]}
    if cfg.examples is not None:
        stored = _examples(cfg)
        params |= {
            f"source.{name}": stored.metadata.get(name) for name in ("model", "bits", "attack", "seed", "fingerprint")
        }
    with leaf(
        cfg,
        tracker,
        label(cfg),
        kind=KIND,
        fingerprint=fingerprint,
        params=params,
        parent=parent,
        note=f"{label(cfg)}.",
        source=target.source,
    ) as result:
        result.log_data(data, context="test")
        clean = evaluate(net, data.test, device=device)
        figures = {"test_accuracy": clean["accuracy"], "test_loss": clean["loss"]}
        if cfg.examples is not None:
            record = joint_record(net, stored, data.test, device=device)
            figures |= {"examples": len(stored.labels), **summarise(record)}
            result.log_table(record, TABLE)
        result.log_metrics(figures)
    say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return result


def joint_record(
    net: nn.Module, examples: AdversarialExamples, split: Split, *, device: torch.device, count: int | None = None
) -> pd.DataFrame:
    """The per-image record of the examples whose clean image the network gets right (the paper's transfer rule).

    Those of a targeted attack succeed where the network takes them for its target.

    Args:
        net: on `device`.
        examples: made on images of `split`.
        count: take the first so many of these examples, in their order, or all if there are fewer; None: all.

    Raises:
        InputError: the network gets none of the clean images right.
    """
    positions: list[Tensor] = []
    logits: list[Tensor] = []
    found = 0
    for block in torch.arange(len(examples.indices)).split(EVALUATION_BATCH):
        clean_logits = predict(net, split.pixels(examples.indices[block]).to(device))
        right = (clean_logits.argmax(1).cpu() == examples.labels[block]).nonzero().flatten()
        right = right if count is None else right[: count - found]
        positions.append(block[right])
        logits.append(clean_logits[right.to(device)])
        found += len(right)
        if found == count:
            break
    if not found:
        raise InputError("the network gets none of the examples' clean images right")
    kept = torch.cat(positions)
    indices, labels, x_adv = (part[kept].to(device) for part in (examples.indices, examples.labels, examples.x_adv))
    x = split.pixels(examples.indices[kept]).to(device)
    targets = None if examples.targets is None else examples.targets[kept].to(device)
    return per_image_record(indices, labels, x, x_adv, torch.cat(logits), predict(net, x_adv), targets)


def read_examples(path: Path) -> AdversarialExamples:
    """Stored adversarial examples.

    Raises:
        InputError: there are none in that file.
    """
    try:
        return load_examples(path)
    except ValueError as error:
        raise InputError(str(error)) from error


def _examples(cfg: DictConfig) -> AdversarialExamples:
    return read_examples(_examples_path(cfg))


def _examples_path(cfg: DictConfig) -> Path:
    named = str(cfg.examples)
    if not re.fullmatch(r"[0-9a-f]{32}", named):
        return Path(named)
    return open_tracker(cfg).download(named, EXAMPLES, settings.work_folder(cfg) / FETCHED / named)


def _source(examples: AdversarialExamples) -> str:
    facts = examples.metadata
    return f"{facts.get('attack')} on {facts.get('model')} bits={facts.get('bits')} seed {facts.get('seed')}"


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("evaluate"))
