"""From a composed config to data, network, recipe and attack, with one-line errors."""

from __future__ import annotations

import functools
import json
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from attacks import AttackResult
from attacks.art.any import check_params, find_attack
from attacks.parameters import accepted_parameters, check_choices, check_parameters
from pipelines.errors import InputError
from pipelines.fingerprints import plain
from qnn.data import ImageData
from qnn.precision import Precision
from qnn.quantizers import Quantizer
from qnn.training import Recipe

# keys of a conf/data and conf/attack file that are not arguments of its function
DATA_META = {"name", "function", "hyperparameters"}
ATTACK_META = {"name", "variant", "function", "target", "paper", "budget", "class", "craft", "craft_n"}
# parameters of attack functions that the pipeline provides
PROVIDED = {"targets", "seed", "variant", "craft_on", "start"}


def load_data(cfg: DictConfig) -> ImageData:
    """The configured data set; kept in memory for later cells of the same process."""
    try:
        return _load_data(json.dumps(plain(cfg.data), sort_keys=True))
    except OmegaConfBaseException as error:
        raise InputError(f"data={cfg.data.name}: {one_line(error)}") from error


@functools.lru_cache(maxsize=2)
def _load_data(settings: str) -> ImageData:
    chosen = json.loads(settings)
    arguments = {name: value for name, value in chosen.items() if name not in DATA_META}
    try:
        return _function(chosen["function"])(**arguments)
    except (ValueError, OSError, TypeError) as error:
        raise InputError(one_line(error)) from error


def build_network(cfg: DictConfig, data: ImageData) -> nn.Module:
    """An untrained network of the configured model, quantiser and bits, fit for the data.

    Raises:
        InputError: impossible combination, or images of another shape than the network takes.
    """
    try:
        # parsed apart so that its message comes without Hydra's account of the instantiation
        Precision.parse(cfg.bits)
        quantizer: Quantizer = instantiate({k: v for k, v in cfg.quantizer.items() if k != "name"})
        net: nn.Module = instantiate(cfg.model.net, quantizer, classes=len(data.class_names))
    except (ValueError, HydraException) as error:
        raise InputError(one_line(error.__cause__ or error)) from error
    wanted = getattr(type(net), "input_shape", data.shape)
    if tuple(wanted) != tuple(data.shape):
        raise InputError(
            f"model={cfg.model.name} takes images of shape {_by(wanted)}, data={cfg.data.name} has {_by(data.shape)}:"
            f" choose another model or data set (the paper trains {cfg.model.name} on {cfg.model.paper_data})"
        )
    return net


def recipe(cfg: DictConfig) -> Recipe:
    """The configured training recipe."""
    try:
        settings = {**instantiate(cfg.training)}
        for meta in ("name", "seed", "channels_last"):
            settings.pop(meta, None)
        chosen = Recipe(**settings)
    except (TypeError, ValueError, HydraException) as error:
        raise InputError(f"training={cfg.training.name}: {one_line(error.__cause__ or error)}") from error
    if chosen.epochs < 1 or chosen.batch_size < 1:
        raise InputError(f"training={cfg.training.name}: epochs and batch_size must be at least 1")
    return chosen


def attack_function(cfg: DictConfig) -> Callable[..., AttackResult]:
    """The configured attack.

    Raises:
        InputError: no such function in the chosen backend.
    """
    return _function(cfg.attack.function)


def attack_parameters(cfg: DictConfig) -> dict[str, Any]:
    """The attack's hyper-parameters, checked against what it accepts and against their ranges."""
    try:
        chosen = plain(cfg.attack)
    except OmegaConfBaseException as error:
        raise InputError(
            f"attack={cfg.attack.name} has no preset for data.hyperparameters={cfg.data.hyperparameters}:"
            f" {one_line(error)}"
        ) from error
    attack = attack_function(cfg)
    accepted = accepted_parameters(attack)
    own = sorted(accepted.keys() - PROVIDED)
    parameters = {name: value for name, value in chosen.items() if name not in ATTACK_META}
    # what only one backend has is harmless while it is switched off
    unknown = sorted(name for name in parameters.keys() - set(own) if parameters[name] not in (None, False, []))
    if unknown:
        raise InputError(
            f"attack={cfg.attack.name} has no parameter {', '.join(unknown)} with backend={backend(cfg)}:"
            f" it has {', '.join(own)}"
        )
    parameters = {name: value for name, value in parameters.items() if name in accepted}
    absent = [name for name in own if accepted[name] and parameters.get(name) is None]
    if absent:
        raise InputError(
            f"attack={cfg.attack.name} lacks a value for {', '.join(absent)}: give it as attack.{absent[0]}=…"
        )
    if chosen.get("target") is not None and "targets" not in accepted:
        raise InputError(f"attack={cfg.attack.name} has no targeted form: leave attack.target out")
    if chosen.get("craft", "attacked") != "attacked" and "craft_on" not in accepted:
        raise InputError(f"attack={cfg.attack.name} with backend={backend(cfg)} crafts on the attacked images only")
    try:
        check_parameters(parameters)
        check_choices(attack, {**parameters, **({"variant": chosen["variant"]} if "variant" in accepted else {})})
        if "class_path" in parameters:
            chosen_class = find_attack(parameters["class_path"])
            check_params(chosen_class, parameters["params"] or {}, targeted=chosen.get("target") is not None)
    except ValueError as error:
        raise InputError(f"attack={cfg.attack.name}: {one_line(error)}") from error
    return parameters


def backend(cfg: DictConfig) -> str:
    """What runs the configured attack: native, art, or the module of a function from elsewhere."""
    module = str(cfg.attack.function).rpartition(".")[0]
    return module.removeprefix("attacks.")


def work_folder(cfg: DictConfig) -> Path:
    """The absolute folder of unfinished work, made if need be.

    Raises:
        InputError: it cannot be written to.
    """
    folder = Path(cfg.work).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"work={cfg.work} cannot be written to ({error.strerror}): choose another folder") from error
    return folder


def set_threads(cfg: DictConfig) -> None:
    """Divide the cores between the jobs of the launcher, or use `trainer.threads`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = HydraConfig.get().launcher.get("n_jobs", 1) if HydraConfig.initialized() else 1
    jobs = cores if jobs < 0 else jobs
    torch.set_num_threads(cfg.trainer.threads or max(1, cores // max(1, jobs)))


def device(cfg: DictConfig) -> torch.device:
    """Where attacks run: the GPU if there is one and `trainer.accelerator` allows it.

    Raises:
        InputError: `gpu` asked for and there is none, or an unknown accelerator.
    """
    wanted = cfg.trainer.accelerator
    if wanted not in ("auto", "cpu", "gpu"):
        raise InputError(f"trainer.accelerator={wanted} is unknown: use auto, cpu or gpu")
    if wanted == "gpu" and not torch.cuda.is_available():
        raise InputError("trainer.accelerator=gpu, but there is no CUDA device: use auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without Hydra's search path and its advice to add keys."""
    text = str(error).split("Config search path:")[0]
    text = re.sub(r"To append to your config use \S+", "There is no such key: --cfg job prints those there are", text)
    return " ".join(text.split())


def _function(path: str) -> Callable[..., Any]:
    try:
        return pkgutil.resolve_name(":".join(path.rsplit(".", 1)))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no function {path}: check backend, attack and data") from error


def _by(shape: Any) -> str:
    return "×".join(map(str, shape))
