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

from omegaconf import DictConfig

from attacks import AdversarialExamples, load_examples, per_image_record, summarise
from pipelines import networks, settings, train
from pipelines.attack import EXAMPLES, TABLE
from pipelines.cells import open_tracker
from pipelines.errors import InputError
from pipelines.progress import say
from pipelines.tracking import Tracker
from qnn.freezing import freeze
from qnn.training import evaluate, predict

KIND = "evaluate"


def check(cfg: DictConfig) -> None:
    train.check(cfg)
    data = settings.load_data(cfg)
    if cfg.network is not None:
        networks.check_stored(cfg, data)
    elif open_tracker(cfg).find_complete(networks.network_fingerprint(cfg, data)) is None:
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


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> str:
    """Evaluate one network and track it."""
    data = settings.load_data(cfg)
    target = networks.obtain(cfg, data, tracker, parent)
    device = settings.device(cfg)
    net = freeze(target.net).to(device)
    params = {**train.parameters(cfg, data), "network": target.description["fingerprint"]}
    if cfg.examples is not None:
        stored = _examples(cfg)
        params |= {
            f"source.{name}": stored.metadata.get(name) for name in ("model", "bits", "attack", "seed", "run_id")
        }
    with tracker.leaf(
        label(cfg), kind=KIND, fingerprint=fingerprint, params=params, parent=parent, note=f"{label(cfg)}."
    ) as run_id:
        tracker.log_inputs(run_id, data, context="test", model_id=target.model_id)
        clean = evaluate(net, data.test, device=device)
        figures = {"test_accuracy": clean["accuracy"], "test_loss": clean["loss"]}
        if cfg.examples is not None:
            x = data.test.pixels(stored.indices).to(device)
            x_adv, labels = stored.x_adv.to(device), stored.labels.to(device)
            clean_logits = predict(net, x)
            kept = clean_logits.argmax(1) == labels
            figures["examples"] = len(labels)
            if not bool(kept.any()):
                raise InputError("this network gets none of the examples' clean images right")
            record = per_image_record(
                stored.indices.to(device)[kept], labels[kept], x[kept], x_adv[kept], clean_logits[kept],
                predict(net, x_adv[kept]),
            )  # fmt: skip
            figures |= summarise(record)
            tracker.log_table(run_id, record, TABLE)
        tracker.log_metrics(run_id, figures)
    say(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return run_id


def _examples(cfg: DictConfig) -> AdversarialExamples:
    try:
        return load_examples(_examples_path(cfg))
    except ValueError as error:
        raise InputError(str(error)) from error


def _examples_path(cfg: DictConfig) -> Path:
    named = str(cfg.examples)
    return open_tracker(cfg).download(named, EXAMPLES) if re.fullmatch(r"[0-9a-f]{32}", named) else Path(named)


def _source(examples: AdversarialExamples) -> str:
    facts = examples.metadata
    return f"{facts.get('attack')} on {facts.get('model')} bits={facts.get('bits')} seed {facts.get('seed')}"


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("evaluate"))
