"""Train networks: ``python -m pipelines.train model=mnist_a bits=1 data=mnist``, or a grid with ``-m``."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import mlflow
import numpy as np
import pytorch_lightning as pl
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import MLFlowLogger

from pipelines import released, settings
from pipelines.cells import process
from pipelines.errors import InputError
from pipelines.fingerprints import UNDEFENDED, network_identity, plain
from pipelines.progress import note
from pipelines.tracking import Tracker, flatten
from qnn.checkpoint import load_weights, read_description, save_network
from qnn.data import ImageData
from qnn.precision import Precision
from qnn.switchable import at_every_width, at_width, widths_of
from qnn.training import TrainingDivergedError, evaluate, train

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
        settings.build_network(cfg, data)
    settings.objective(cfg)
    settings.recipe(cfg)
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


def run(cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> str:
    """Train one network and track it: curves, accuracies, stored network, loadable MLflow model."""
    data = settings.load_data(cfg)
    scratch = settings.work_folder(cfg) / "training" / fingerprint
    note_text = f"Training of {trained_name(cfg)} on {data.name} with the recipe `{cfg.training.name}`."
    with tracker.leaf(
        label(cfg),
        kind=KIND,
        fingerprint=fingerprint,
        params={**parameters(cfg, data), "bits": trained_bits(cfg)},
        parent=parent,
        note=note_text,
        resume=(scratch / "last.ckpt").is_file(),
    ) as run_id:
        tracker.log_inputs(run_id, data, context="training")
        pl.seed_everything(cfg.training.seed, verbose=False)
        net = settings.build_network(cfg, data)
        if cfg.defence.start is not None:
            _start_from(net, start_config(cfg), tracker, parent)
        started = time.perf_counter()
        try:
            net = train(
                net,
                data,
                settings.recipe(cfg),
                seed=cfg.training.seed,
                folder=scratch,
                objective=settings.objective(cfg),
                logger=MLFlowLogger(experiment_name=cfg.study, tracking_uri=tracker.uri, run_id=run_id),
                callbacks=[_Epochs(trained_name(cfg))],
                accelerator=cfg.trainer.accelerator,
                channels_last=cfg.training.get("channels_last", False),
                compile_net=cfg.trainer.compile,
            )
        except TrainingDivergedError:
            shutil.rmtree(scratch, ignore_errors=True)  # nothing there is worth going on from
            raise
        seconds = time.perf_counter() - started
        figures, by_width = _evaluated(net, data)
        tracker.log_metrics(
            run_id,
            {
                **figures,
                **{f"test_accuracy.{width}": accuracy for width, accuracy in by_width.items()},
                "parameters": sum(p.numel() for p in net.parameters()),
                "seconds": seconds,
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            stored = Path(folder)
            described = {**_description(cfg, data, fingerprint), "test_accuracy": figures["test_accuracy"]}
            save_network(stored, net, {**described, "test_accuracies": by_width} if by_width else described)
            tracker.log_folder(run_id, stored, ARTIFACT)
            _log_model(run_id, stored, data, label(cfg))
    shutil.rmtree(scratch, ignore_errors=True)
    return run_id


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
    """The config of the network that a training starts from (`defence.start`), trained first where needed."""
    start = OmegaConf.merge(
        OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "defence"]), cfg.defence.start
    )
    start.force = False
    return start  # type: ignore[return-value]


def _start_from(net: torch.nn.Module, start: DictConfig, tracker: Tracker, parent: str | None) -> None:
    """Load the weights of another trained network; ranges that it does not have are left to be observed."""
    data = settings.load_data(start)
    if start.weights == "released":
        folder = released.choose(start, data)
    else:
        folder = tracker.download(process(sys.modules[__name__], start, tracker, parent).run.info.run_id, ARTIFACT)
    loaded = load_weights(settings.build_network(start, data), folder)
    differing = net.load_state_dict(at_every_width(net, loaded.state_dict()), strict=False)
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
    if cfg.model.net.get("topology", "auto") != "auto":
        parts.append(f"{cfg.model.net.topology} topology")
    if cfg.training.seed:
        parts.append(f"training seed {cfg.training.seed}")
    return " ".join(parts)


def _description(cfg: DictConfig, data: ImageData, fingerprint: str) -> dict[str, Any]:
    widths = settings.trained_widths(cfg)
    return {
        "fingerprint": fingerprint,
        "model": cfg.model.name,
        "net": plain(cfg.model.net),
        "quantizer": cfg.quantizer.name,
        "bits": trained_bits(cfg),
        **({"widths": list(widths), "norms": cfg.defence.norms} if widths else {}),
        **({} if cfg.defence.name == "none" else {"defence": plain(cfg.defence)}),
        "data": data.name,
        "data_digest": data.digest,
        "classes": list(data.class_names),
        "training": plain(cfg.training),
    }


def _log_model(run_id: str, stored: Path, data: ImageData, name: str) -> None:
    images = TensorSpec(np.dtype("float32"), (-1, *data.shape))
    logits = TensorSpec(np.dtype("float32"), (-1, len(data.class_names)))
    with mlflow.start_run(run_id=run_id):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"network": str(stored)},
            signature=ModelSignature(Schema([images]), Schema([logits])),
            pip_requirements=["torch", "safetensors", "numpy"],
            metadata={"network": name},
        )


class _Epochs(pl.Callback):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        note(f"{epoch}, validation accuracy {accuracy:.2%}", of=f"training {self.name}")


if __name__ == "__main__":
    from pipelines.cli import launch

    sys.exit(launch("train"))
