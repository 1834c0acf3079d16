"""From a composed config to data, network, recipe and attack, with one-line errors."""

from __future__ import annotations

import errno
import functools
import json
import os
import pkgutil
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from torch import nn

from attacks import AttackResult
from attacks.art.any import check_params, find_attack
from attacks.parameters import accepted_parameters, check_choices, check_parameters
from pipelines import workers
from pipelines.errors import InputError
from pipelines.fingerprints import plain
from qnn.data import ImageData
from qnn.defences import Defence
from qnn.precision import Precision
from qnn.quantizers import Quantizer
from qnn.recipes import Recipe
from qnn.switchable import switchable

# keys of a conf/data and conf/attack file that are not arguments of its function
DATA_META = {"name", "function", "hyperparameters"}
ATTACK_META = {"name", "variant", "function", "target", "paper", "budget", "class", "craft", "craft_n"}
# parameters of attack functions that the pipeline provides
PROVIDED = {"targets", "seed", "variant", "craft_on", "start"}
# how the paths of patch attacks begin
_PATCHES = "attacks.patch_"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM}


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The config of a training with these overrides, not to be changed; within Hydra's jobs and outside of them.

    Raises:
        HydraException: there is no such config.
    """
    begun = GlobalHydra.instance().is_initialized()
    with nullcontext() if begun else initialize_config_module("conf", version_base="1.3"):
        return compose("train", list(overrides))


def load_data(cfg: DictConfig) -> ImageData:
    """The configured data set; kept in memory for later cells of the same process."""
    try:
        return _load_data(json.dumps(plain(cfg.data), sort_keys=True))
    except InterpolationKeyError as error:
        if "model.paper_data" not in str(error):
            raise InputError(f"data: {one_line(error)}") from error
        raise InputError(
            f"data=paper: model={cfg.model.name} has no paper_data, as the paper has no such model: name a data set"
        ) from None
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
    """An untrained network of the configured model, quantiser and widths, fit for the data.

    Raises:
        InputError: impossible combination, or images of another shape than the network takes.
    """
    widths = trained_widths(cfg)
    try:
        # parsed apart so that its message comes without Hydra's account of the instantiation
        Precision.parse(cfg.bits)
        build = network_builder(cfg, data)
        net = switchable(build, widths, norms=cfg.defence.norms) if widths else build(cfg.bits)
    except (ValueError, HydraException) as error:
        raise InputError(one_line(error.__cause__ or error)) from error
    shape = getattr(type(net), "input_shape", data.shape)
    if any(want not in (None, have) for want, have in zip(shape, data.shape, strict=True)):
        wanted = _by(side or "any" for side in shape)
        paper_data = cfg.model.get("paper_data")
        hint = f" (the paper trains {cfg.model.name} on {paper_data})" if paper_data else ""
        raise InputError(
            f"model={cfg.model.name} takes images of shape {wanted}, data={cfg.data.name} has {_by(data.shape)}:"
            f" choose another model or data set{hint}"
        )
    return net


def network_builder(cfg: DictConfig, data: ImageData) -> Callable[[str], nn.Module]:
    """What builds the configured network at one width."""

    def build(bits: str) -> nn.Module:
        chosen = {name: value for name, value in cfg.quantizer.items() if name != "name"}
        quantizer: Quantizer = instantiate({**chosen, "bits": bits})
        return instantiate(cfg.model.net, quantizer, classes=len(data.class_names))

    return build


def trained_widths(cfg: DictConfig) -> tuple[str, ...]:
    """The widths of a network that is trained for several; none for one trained at `bits` alone.

    Raises:
        InputError: no list of bit widths, or of a single one that is not `bits`.
    """
    widths = cfg.defence.widths
    if widths is None:
        return ()
    if not isinstance(widths, ListConfig) or not widths:
        raise InputError(f"defence.widths={widths} must be a list, as in defence.widths=[FP,8,4,2], or null")
    try:
        names = tuple(dict.fromkeys(str(Precision.parse(width)) for width in widths))
        is_other = len(names) == 1 and names[0] != str(Precision.parse(cfg.bits))
    except ValueError as error:
        raise InputError(f"defence.widths and bits: {error}") from error
    if is_other:
        raise InputError(f"defence.widths={widths} trains {names[0]} alone, not bits={cfg.bits}: give both the same")
    return names if len(names) > 1 else ()


def objective(cfg: DictConfig) -> nn.Module | None:
    """What the configured defence minimises in training; None for cross-entropy at one width.

    Raises:
        InputError: a setting that it does not have, or out of range.
    """
    widths = trained_widths(cfg)
    try:
        if cfg.defence.objective is not None:
            return instantiate(cfg.defence.objective)
        return Defence(widths=widths) if widths else None
    except (TypeError, ValueError, HydraException, OmegaConfBaseException) as error:
        raise InputError(f"defence={cfg.defence.name}: {one_line(error.__cause__ or error)}") from error


def recipe(cfg: DictConfig) -> Recipe:
    """The configured training recipe."""
    try:
        settings = {**instantiate(cfg.training)}
        for meta in ("name", "seed", "channels_last", "clipped_norm_scale", "clipped_norm_in_units"):
            settings.pop(meta, None)
        chosen = Recipe(**settings)
    except (TypeError, ValueError, HydraException) as error:
        raise InputError(f"training={cfg.training.name}: {one_line(error.__cause__ or error)}") from error
    if chosen.epochs < 1 or chosen.batch_size < 1:
        raise InputError(f"training={cfg.training.name}: epochs and batch_size must be at least 1")
    scale = cfg.training.get("clipped_norm_scale", 1.0)
    if not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise InputError(f"training.clipped_norm_scale={scale}: it must be a number above 0")
    return chosen


def attack_function(cfg: DictConfig) -> Callable[..., AttackResult]:
    """The configured attack.

    Raises:
        InputError: no such function in the chosen backend.
    """
    if cfg.get("backend") == "art" and str(cfg.attack.function).startswith(_PATCHES):
        raise InputError(f"attack={cfg.attack.name} is this project's own patch attack: leave backend=art out")
    return _function(cfg.attack.function)


def attack_parameters(cfg: DictConfig) -> dict[str, Any]:
    """The attack's hyper-parameters, checked against what it accepts and against their ranges.

    An attack goes on after its first success where it is made on another network than the one it is judged on, or on
    one that draws.
    """
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
    if judged_elsewhere(cfg) and "early_stop" in accepted and not parameters.get("universal", False):
        parameters["early_stop"] = False
    try:
        check_parameters(parameters)
        check_choices(attack, {**parameters, **({"variant": chosen["variant"]} if "variant" in accepted else {})})
        if "class_path" in parameters:
            chosen_class = find_attack(parameters["class_path"])
            check_params(chosen_class, parameters["params"] or {}, targeted=chosen.get("target") is not None)
    except ValueError as error:
        raise InputError(f"attack={cfg.attack.name}: {one_line(error)}") from error
    return parameters


def judged_elsewhere(cfg: DictConfig) -> bool:
    """Whether the network that an attack is made on tells no more than how it will go on the one that counts."""
    return cfg.surrogate is not None or draws(cfg)


def draws(cfg: DictConfig) -> bool:
    """Whether the width is drawn for each image."""
    return bool(cfg.inference == "random")


def backend(cfg: DictConfig) -> str:
    """What runs the configured attack: native, art, or the module of a function from elsewhere."""
    function = str(cfg.attack.function)
    if function.startswith(("attacks.native.", _PATCHES)):
        return "native"
    return function.rpartition(".")[0].removeprefix("attacks.")


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


def is_of_disk(error: BaseException) -> bool:
    """Whether an exception is about a disk that is full or must not be written to."""
    return getattr(error, "errno", None) in _DISK or "No space left on device" in str(error)


def check_whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> None:
    """Raise InputError unless a setting is a whole number within its limits."""
    if least is None:
        if not isinstance(value, int):
            raise InputError(f"{name}={value} must be a whole number")
    elif not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}={value} is out of range: it must be a whole number {limits}")


def set_threads(cfg: DictConfig) -> None:
    """Use `trainer.threads`, or this job's share of the cores."""
    torch.set_num_threads(cfg.trainer.threads or workers.threads())


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
    advice = r"--cfg job prints those there are (++\1 sets one that not all values of a sweep have)"
    text = re.sub(r"To append to your config use \+?(\S+)", f"There is no such key: {advice}", text)
    return " ".join(text.split())


def _function(path: str) -> Callable[..., Any]:
    try:
        return pkgutil.resolve_name(":".join(path.rsplit(".", 1)))
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no function {path}: check backend, attack and data") from error


def _by(shape: Any) -> str:
    return "×".join(map(str, shape))
