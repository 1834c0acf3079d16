"""Any evasion attack of the Adversarial Robustness Toolbox (ART), by the path of its class."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from art.attacks import EvasionAttack
from torch import Tensor, nn

from attacks.art.estimator import CountingClassifier, as_result, seeded
from attacks.evaluation import Evaluator, check_images
from attacks.result import AttackResult

_TAKE_Y_AS_TARGETS = {"SaliencyMapMethod"}


def any_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    class_path: str,
    params: Mapping[str, Any] | None = None,
    targets: Tensor | None = None,
    seed: int = 0,
) -> AttackResult:
    """Run an ART attack that takes a classifier, as it is.

    Args:
        class_path: such as ``art.attacks.evasion.SquareAttack``, or the class name alone.
        params: arguments of its constructor besides the estimator.
        targets: classes to reach, (n,); the attack is then built with ``targeted=True`` and given these.
        seed: of Python's, NumPy's and torch's global generators, which ART draws from.

    Raises:
        ValueError: no such attack, a parameter it does not have, or targets for one without a targeted form.
    """
    attack_class = find_attack(class_path)
    settings = check_params(attack_class, params or {}, targeted=targets is not None)
    accepted = inspect.signature(attack_class.__init__).parameters
    if "targeted" in accepted:
        settings["targeted"] = targets is not None
    for name, value in (("verbose", False), ("batch_size", max(1, len(x)))):
        if name in accepted:
            settings.setdefault(name, value)
    labels = y if targets is None else targets
    check_images(x, y, targets)
    with Evaluator(model, x) as network, seeded(seed), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attack = attack_class(CountingClassifier(network, x), **settings)
        blind = targets is None and attack_class.__name__ in _TAKE_Y_AS_TARGETS
        x_adv = attack.generate(x.cpu().numpy(), y=None if blind else labels.cpu().numpy())
    adversarial = as_result(network, x_adv, x)
    adversarial.x_adv.clamp_(0, 1)
    return adversarial


def find_attack(class_path: str) -> type[EvasionAttack]:
    """The class of an ART evasion attack.

    Raises:
        ValueError: there is none of that path, or it is something else.
    """
    full = str(class_path) if "." in str(class_path) else f"art.attacks.evasion.{class_path}"
    try:
        found = pkgutil.resolve_name(":".join(full.rsplit(".", 1)))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no ART attack {full}: see art.attacks.evasion for those there are") from error
    if not (isinstance(found, type) and issubclass(found, EvasionAttack)):
        raise ValueError(f"{full} is not an evasion attack of ART")
    return found


def check_params(
    attack_class: type[EvasionAttack], params: Mapping[str, Any], *, targeted: bool = False
) -> dict[str, Any]:
    """The parameters, if the attack has them all, needs no others, and has a targeted form where that is asked for.

    Raises:
        ValueError: says what is wrong and what there is.
    """
    name = attack_class.__name__
    first, *own = list(inspect.signature(attack_class.__init__).parameters.values())[1:]
    if first.name not in ("estimator", "classifier"):
        raise ValueError(f"{name} does not attack a classifier")
    if not isinstance(params, Mapping):
        raise ValueError(f"attack.params={params} must be a mapping, as in {{eps:0.1}}")
    if unknown := sorted(set(params) - {parameter.name for parameter in own}):
        listed = ", ".join(parameter.name for parameter in own)
        raise ValueError(f"{name} has no parameter {', '.join(map(str, unknown))}: it has {listed}")
    needed = [parameter.name for parameter in own if parameter.default is inspect.Parameter.empty]
    if lacking := [parameter for parameter in needed if parameter not in params]:
        raise ValueError(f"{name} needs a value for {', '.join(lacking)}: give it in attack.params")
    takes_targets = any(parameter.name == "targeted" for parameter in own) or name in _TAKE_Y_AS_TARGETS
    if targeted and not takes_targets:
        raise ValueError(f"{name} has no targeted form: leave attack.target out")
    return dict(params)
