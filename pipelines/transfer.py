"""Apply an attack's examples to other networks: ``python -m pipelines.transfer -m bits=FP,1 targets.model=mnist_b``.

A cell is an attack on a source network, run first if the tracking store has none like it, and a family of
targets: the networks of one model and training seed at several widths, each trained first where needed.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pandas as pd
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from attacks import AdversarialExamples, summarise
from pipelines import attack, networks, settings, train
from pipelines.cells import leaf, process
from pipelines.errors import InputError
from pipelines.evaluate import joint_record, read_examples
from pipelines.fingerprints import fingerprint, plain
from pipelines.networks import Network
from pipelines.progress import note
from pipelines.results import Result
from pipelines.settings import one_line
from pipelines.tracking import Tracker, flatten
from qnn.data import ImageData
from qnn.freezing import freeze
from qnn.precision import Precision

KIND = "transfer"
TABLE = "transfer.json"
PER_IMAGE = "transferred.json"

_OWN = {"apply", "count", "targets"}
_UNIVERSAL = {"uap"}


def check(cfg: DictConfig) -> None:
    attack.check(_source(cfg))
    if cfg.apply not in ("examples", "perturbation"):
        raise InputError(f"apply={cfg.apply} is unknown: use examples or perturbation")
    if cfg.apply == "perturbation" and cfg.attack.name not in _UNIVERSAL:
        raise InputError(f"attack={cfg.attack.name} has no universal perturbation: use attack=uap or apply=examples")
    settings.check_whole_number("count", cfg.count, least=1)
    settings.check_whole_number("targets.seed", cfg.targets.seed)
    if "seed" in cfg.targets.training:
        raise InputError("targets.training.seed: the seed of the targets' training is targets.seed")
    if not isinstance(cfg.targets.bits, ListConfig) or not cfg.targets.bits:
        raise InputError(f"targets.bits={cfg.targets.bits} must be a list, as in targets.bits=[FP,1,2]")
    targets = target_configs(cfg)
    for target in targets:
        networks.check(target)
    if len({_bits(target) for target in targets}) < len(targets):
        raise InputError(f"targets.bits={cfg.targets.bits} names a width twice")


def identity(cfg: DictConfig) -> dict[str, Any]:
    data = settings.load_data(cfg)
    return {
        "kind": KIND,
        "source": fingerprint(attack.identity(_source(cfg))),
        "targets": sorted(networks.network_fingerprint(target, data) for target in target_configs(cfg)),
        "apply": cfg.apply,
        "count": cfg.count,
    }


def label(cfg: DictConfig) -> str:
    seed = f" training seed {cfg.targets.seed}" if cfg.targets.seed else ""
    return f"{cfg.apply} of {attack.label(cfg)}, on {cfg.targets.model}{seed}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Apply one attack to all targets and track it: one row per target, one per target and image."""
    data, device = settings.load_data(cfg), settings.device(cfg)
    attacked = process(attack, _source(cfg), tracker, parent)
    examples = read_examples(attacked.artifact(attack.EXAMPLES, tracker))
    if cfg.apply == "perturbation":
        examples = _on_fresh_images(cfg, examples, data, networks.obtain(_source(cfg), data, tracker, parent))
    targets = [(target, networks.obtain(target, data, tracker, parent)) for target in target_configs(cfg)]
    params = {**attacked.params, **_parameters(cfg)}
    about = (
        f"{label(cfg)} at {params['targets.bits']} bits: the first {cfg.count} images that source and target"
        " both get right."
    )
    with leaf(
        cfg,
        tracker,
        label(cfg),
        kind=KIND,
        fingerprint=fingerprint,
        params=params,
        parent=parent,
        note=about,
        source=attacked.source,
    ) as result:
        result.log_data(data, context=KIND)
        started = time.perf_counter()
        rows, images = [], []
        for target, network in targets:
            note(f"evaluating {train.network_name(target)}", of=label(cfg))
            net = freeze(network.net.to(device), compile=cfg.trainer.compile)
            record = joint_record(net, examples, data.test, device=device, count=cfg.count)
            rows.append(_row(target, network, record))
            images.append(record[["index", "evaded"]].assign(target_bits=_bits(target)))
        table = pd.DataFrame(rows)
        result.log_table(table, TABLE)
        result.log_table(pd.concat(images)[["target_bits", "index", "evaded"]], PER_IMAGE)
        figures = _figures(table, source_network=params["network"])
        result.log_metrics({**figures, "seconds": time.perf_counter() - started})
    return result


def target_configs(cfg: DictConfig) -> list[DictConfig]:
    """The configs of the target networks: the source's but for `targets`.

    Another model has its own recipe, and does not start from the source's network. `targets.training` departs from
    the recipe.

    Raises:
        InputError: there is no such model.
    """
    family = _source(cfg)
    family.network, family.data = None, plain(cfg.data)
    if cfg.targets.model != cfg.model.name:
        try:
            other = settings.composed(f"model={cfg.targets.model}", f"defence={cfg.defence.name}")
        except HydraException as error:
            raise InputError(f"targets.model={cfg.targets.model}: {one_line(error)}") from error
        family.model, family.training = other.model, other.training
        family.defence.start = other.defence.start
    family.weights = cfg.targets.weights
    with open_dict(family):
        family.training = OmegaConf.merge(family.training, cfg.targets.training, {"seed": cfg.targets.seed})
    return [OmegaConf.merge(family, {"bits": bits}) for bits in cfg.targets.bits]  # type: ignore[misc]


def _source(cfg: DictConfig) -> DictConfig:
    return attack.within(cfg, own=_OWN)


def _on_fresh_images(
    cfg: DictConfig, examples: AdversarialExamples, data: ImageData, source: Network
) -> AdversarialExamples:
    """The universal perturbation on all test images that the source gets right and that were not attacked.

    They are in the order of the seeded permutation that the attacked ones are the beginning of.
    """
    if examples.perturbation is None:
        raise InputError("the attack's run has no universal perturbation: redo it with pipelines.attack force=true")
    device = settings.device(cfg)
    net = freeze(source.net.to(device), compile=cfg.trainer.compile)
    right = networks.images_right(net, data.test, device, n=len(data.test), seed=cfg.seed)
    fresh = ~torch.isin(right.indices, examples.indices)
    if not bool(fresh.any()):
        raise InputError(f"n={cfg.n} leaves no test image that was not attacked: lower n")
    x = data.test.pixels(right.indices[fresh])
    x_adv = (x + examples.perturbation).clamp(0, 1)
    return AdversarialExamples(x_adv, right.indices[fresh], right.labels[fresh], examples.metadata)


def _row(target: DictConfig, network: Network, record: pd.DataFrame) -> dict[str, Any]:
    """One target. `transfer_rate`: the share of images it gets wrong; `attack_success_rate`: the same, or of a targeted
    attack the share taken for its target. Distances are over these, NaN where there are none.
    """
    figures = summarise(record)
    return {
        "target_model": target.model.name,
        "target_bits": _bits(target),
        "target_training_seed": target.training.seed,
        "target_network": network.description["fingerprint"],
        "n": len(record),
        **{f"adversarial_accuracy{end}": figures[f"adversarial_accuracy{end}"] for end in ("", "_low", "_high")},
        "transfer_rate": figures["evasion_rate"],
        "attack_success_rate": figures["attack_success_rate"],
        **{distance: figures.get(distance, float("nan")) for distance in ("l2", "l2_median", "linf")},
        "test_accuracy": network.description["test_accuracy"],
    }


def _figures(table: pd.DataFrame, *, source_network: str) -> dict[str, float]:
    """Adversarial accuracy by width, and means over the targets that are not the source, if there are any."""
    figures = {
        f"adversarial_accuracy.{bits}": accuracy
        for bits, accuracy in zip(table["target_bits"], table["adversarial_accuracy"], strict=True)
    }
    others = table[table["target_network"] != source_network]
    if len(others):
        for name in ("adversarial_accuracy", "transfer_rate"):
            figures[f"mean_{name}"] = float(others[name].mean())
    return figures


def _parameters(cfg: DictConfig) -> dict[str, Any]:
    return {
        "targets.model": cfg.targets.model,
        "targets.bits": " ".join(str(Precision.parse(bits)) for bits in cfg.targets.bits),
        "targets.seed": cfg.targets.seed,
        **flatten(plain(cfg.targets.training), "targets.training."),
        "apply": cfg.apply,
        "count": cfg.count,
    }


def _bits(cfg: DictConfig) -> str:
    return str(Precision.parse(cfg.bits))


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("transfer"))
