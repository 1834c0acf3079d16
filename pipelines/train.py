"""Train networks: ``python -m pipelines.train model=mnist_a bits=1 data=mnist``, or a grid with ``-m``."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from statistics import fmean
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from pipelines import released, settings
from pipelines.cells import leaf, process
from pipelines.errors import InputError
from pipelines.fingerprints import UNDEFENDED, network_identity, plain, quantizer_identity
from pipelines.progress import say
from pipelines.results import Result
from pipelines.tracking import Tracker, flatten
from qnn.checkpoint import is_own, load_weights, read_description, save_network
from qnn.data import Batches, ImageData
from qnn.defences import Defence
from qnn.evaluation import evaluate
from qnn.precision import Precision
from qnn.quantizers import learn_norms_plainly, scale_clipped_norms
from qnn.switchable import at_every_width, at_width, widths_of

KIND = "train"
ARTIFACT = "network"


def check(cfg: DictConfig) -> None:
    check_network(cfg)
    if cfg.weights == "released":
        raise InputError("weights=released: released networks need no training; leave it out to train one yourself")


def check_network(cfg: DictConfig) -> None:
    """Raise InputError unless the network of a config can be built, and trained if need be."""
    if cfg.weights not in ("trained", "released"):
        raise InputError(f"weights={cfg.weights} is unknown: use trained or released")
    if cfg.weights == "released" and cfg.network is not None:
        raise InputError(f"weights=released and network={cfg.network} name a network each: leave one of them out")
    data = settings.load_data(cfg)
    with torch.device("meta"):
        net = settings.build_network(cfg, data)
    objective, recipe = settings.objective(cfg), settings.recipe(cfg)
    if isinstance(objective, Defence):
        try:
            objective.check(
                net, recipe.epochs, len(Batches(data.train, recipe.batch_size, steps=recipe.steps_per_epoch))
            )
        except ValueError as error:
            raise InputError(f"defence={cfg.defence.name}: {error}") from None
    settings.device(cfg)
    if cfg.defence.start is not None:
        check_network(start := start_config(cfg))
        if start.weights == "released":
            released.choose(start, data)


def identity(cfg: DictConfig) -> dict[str, Any]:
    """What determines the network; where it starts from a released one, that one is part of it."""
    data = settings.load_data(cfg)
    identity = network_identity(cfg, data.digest)
    if cfg.defence.start is not None and (start := start_config(cfg)).weights == "released":
        identity["start"] = read_description(released.choose(start, data))["fingerprint"]
    return identity


def label(cfg: DictConfig) -> str:
    return f"train {trained_name(cfg)}"


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result:
    """Train one network and track it: curves, accuracies, stored network, loadable MLflow model.

    The MLflow model is left out where the model or the quantiser is not this package's: loading a stored network
    must not run code that its description names.
    """
    # Lightning takes seconds to import, which attacks on trained networks do not wait for
    from pytorch_lightning import seed_everything

    from pipelines.curves import Curves, Epochs
    from qnn.training import TrainingDivergedError, set_aside_damaged, train

    for name in ("pytorch_lightning", "lightning_fabric"):  # which log all they do from their import on
        logging.getLogger(name).setLevel(logging.ERROR)
    data = settings.load_data(cfg)
    start = _trained_start(start_config(cfg), tracker, parent) if cfg.defence.start is not None else None
    scratch = settings.work_folder(cfg) / "training" / fingerprint
    about = f"Training of {trained_name(cfg)} on {data.name} with the recipe `{cfg.training.name}`."
    with leaf(
        cfg,
        tracker,
        label(cfg),
        kind=KIND,
        fingerprint=fingerprint,
        params={**parameters(cfg, data), "bits": trained_bits(cfg)},
        parent=parent,
        note=about,
    ) as result:
        result.log_data(data, context="training")
        seed_everything(cfg.training.seed, verbose=False)
        net = settings.build_network(cfg, data)
        if start is not None:
            _start_from(net, start)
        elif (scale := cfg.training.get("clipped_norm_scale")) is not None:
            scale_clipped_norms(net, scale, in_units=cfg.training.get("clipped_norm_in_units", False))
        if damaged := set_aside_damaged(scratch):
            say(f"{trained_name(cfg)}: {damaged} is damaged: it was set aside, the training begins anew")
        curves = Curves(scratch, tracker, result.facts.run_id)
        started = time.perf_counter()
        try:
            net = train(
                net,
                data,
                settings.recipe(cfg),
                seed=cfg.training.seed,
                folder=scratch,
                objective=settings.objective(cfg),
                logger=curves,
                callbacks=[Epochs(trained_name(cfg))],
                accelerator=cfg.trainer.accelerator,
                channels_last=cfg.training.get("channels_last", False),
                compile_net=cfg.trainer.compile,
            )
        except TrainingDivergedError:
            shutil.rmtree(scratch, ignore_errors=True)  # nothing there is worth going on from
            raise
        learn_norms_plainly(net)
        seconds = time.perf_counter() - started
        figures, by_width = _evaluated(net, data)
        result.log_points(curves.points())
        result.log_metrics(
            {
                **figures,
                **{f"test_accuracy.{width}": accuracy for width, accuracy in by_width.items()},
                "parameters": sum(p.numel() for p in net.parameters()),
                "seconds": seconds,
            }
        )
        described = {**_description(cfg, data, fingerprint), "test_accuracy": figures["test_accuracy"]}
        stored = {**described, "test_accuracies": by_width} if by_width else described
        save_network(result.artifacts / ARTIFACT, net, stored)
        if is_own(stored):
            result.facts.model = {
                "folder": ARTIFACT,
                "image": list(data.shape),
                "classes": len(data.class_names),
                "network": label(cfg),
            }
    return result


def _evaluated(net: torch.nn.Module, data: ImageData) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy and loss, means over the widths where there are several, and the test accuracy of each of those."""
    widths = widths_of(net)
    nets = {width: at_width(net, width) for width in widths} or {"": net}
    test = {width: evaluate(one, data.test) for width, one in nets.items()}
    validation = [evaluate(one, data.validation) for one in nets.values()]
    figures = {
        "test_accuracy": fmean(result["accuracy"] for result in test.values()),
        "test_loss": fmean(result["loss"] for result in test.values()),
        "best_val_accuracy": fmean(result["accuracy"] for result in validation),
        "best_val_loss": fmean(result["loss"] for result in validation),
    }
    return figures, {width: test[width]["accuracy"] for width in widths}


def start_config(cfg: DictConfig) -> DictConfig:
    """The config of the network that a training starts from (`defence.start`), trained first where needed.

    A group that the start names, as in a recipe of its own, is all its own; of the others it has the network's.
    """
    own = {name for name, group in cfg.defence.start.items() if isinstance(group, DictConfig) and "name" in group}
    inherited = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in own | {"defence"}])
    start = OmegaConf.merge(inherited, cfg.defence.start)
    start.force = False
    if "quantizer" in own:
        OmegaConf.update(start, "quantizer.bits", start.bits, force_add=True)
    return start  # type: ignore[return-value]


def _trained_start(start: DictConfig, tracker: Tracker, parent: str | None) -> torch.nn.Module:
    data = settings.load_data(start)
    if start.weights == "released":
        folder = released.choose(start, data)
    else:
        folder = process(sys.modules[__name__], start, tracker, parent).artifact(ARTIFACT, tracker)
    return load_weights(settings.build_network(start, data), folder)


def _start_from(net: torch.nn.Module, start: torch.nn.Module) -> None:
    """Take the weights of another trained network; ranges that it does not have are left to be observed."""
    differing = net.load_state_dict(at_every_width(net, start.state_dict()), strict=False)
    odd = [*differing.unexpected_keys, *(name for name in differing.missing_keys if not name.endswith(".range"))]
    if odd:
        raise InputError(f"defence.start is another network than the one to train: it differs in {', '.join(odd[:4])}")


def parameters(cfg: DictConfig, data: ImageData) -> dict[str, Any]:
    """Every axis and hyper-parameter of the network, by the names they have on the command line."""
    precision = Precision.parse(cfg.bits)
    training = released.training(cfg, data) if cfg.weights == "released" else plain(cfg.training)
    return {
        "model": cfg.model.name,
        "bits": str(precision),
        "weight_bits": precision.weights or "FP",
        "activation_bits": precision.activations or "FP",
        "data": data.name,
        "quantizer": cfg.quantizer.name,
        **flatten(quantizer_identity(cfg).get("quantizer_settings", {}), "quantizer."),
        **_defence(cfg),
        **flatten(plain(cfg.model.net), "model.net."),
        **flatten({k: v for k, v in plain(cfg.data).items() if k not in ("name", "function", "root")}, "data."),
        **flatten(training, "training."),
    }


def _defence(cfg: DictConfig) -> dict[str, Any]:
    chosen = plain(cfg.defence)
    if chosen == UNDEFENDED:
        return {}
    return {"defence": chosen.pop("name"), **flatten(chosen, "defence.")}


def network_name(cfg: DictConfig) -> str:
    """As in ``mnist_a 4-bit``, with what departs from the plain network behind it."""
    bits = str(Precision.parse(cfg.bits))
    return _name(cfg, f"{bits}-bit" if bits.isdecimal() else bits)


def trained_name(cfg: DictConfig) -> str:
    """As `network_name`, but where a network is trained for several widths all of them are named."""
    widths = settings.trained_widths(cfg)
    return _name(cfg, f"{'/'.join(widths)}-bit") if widths else network_name(cfg)


def trained_bits(cfg: DictConfig) -> str:
    """The widths a network is trained for, as in ``FP 8 2``; `bits` where that is one."""
    return " ".join(settings.trained_widths(cfg)) or str(Precision.parse(cfg.bits))


def compared_name(cfg: DictConfig) -> str:
    """As `network_name`, with all widths of `compare`."""
    return _name(cfg, f"at {'/'.join(map(str, cfg.compare))} bits")


def _name(cfg: DictConfig, bits: str) -> str:
    parts = [cfg.model.name, bits]
    if cfg.defence.name != "none":
        parts.append(cfg.defence.name)
    if cfg.quantizer.name != "dorefa":
        parts.append(cfg.quantizer.name)
    parts += _departures(cfg)
    if cfg.model.net.get("topology", "auto") != "auto":
        parts.append(f"{cfg.model.net.topology} topology")
    if cfg.training.seed:
        parts.append(f"training seed {cfg.training.seed}")
    return " ".join(parts)


def _departures(cfg: DictConfig) -> list[str]:
    """What the quantiser and the defence's objective have otherwise than in their files, as in ``gir=none``."""
    try:
        usual = settings.composed(f"quantizer={cfg.quantizer.name}", f"defence={cfg.defence.name}")
    except HydraException:  # of a file whose name is another
        return []
    found = []
    for own, ordinary in ((cfg.quantizer, usual.quantizer), (cfg.defence.objective, usual.defence.objective)):
        if own is not None:
            known = _as_written(ordinary)
            found += [f"{name}={value}" for name, value in _as_written(own).items() if known.get(name, "") != value]
    return found


def _as_written(node: DictConfig | None) -> dict[str, Any]:
    return flatten(OmegaConf.to_container(node)) if node is not None else {}  # type: ignore[arg-type]


def _description(cfg: DictConfig, data: ImageData, fingerprint: str) -> dict[str, Any]:
    widths = settings.trained_widths(cfg)
    return {
        "fingerprint": fingerprint,
        "model": cfg.model.name,
        "net": plain(cfg.model.net),
        **quantizer_identity(cfg),
        "bits": trained_bits(cfg),
        **({"widths": list(widths), "norms": cfg.defence.norms} if widths else {}),
        **({} if cfg.defence.name == "none" else {"defence": plain(cfg.defence)}),
        "data": data.name,
        "data_digest": data.digest,
        "classes": list(data.class_names),
        "training": plain(cfg.training),
    }


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("train"))
