"""Is a defence real, or does it only hide its gradients? Rules that attacks on a real one keep, and which are broken.

A rule says that one success rate is not below another. It is broken where the 95 % interval of their difference lies
below zero; so of many comparisons where it holds, one in forty is found broken by chance. Rules with several rates
compare each with the one before it, and are found broken by chance more often. What is compared shares its training
and attack seeds: else a rule would tell networks apart, or patches, and not attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd

from analysis.patches import ITSELF, SIZE, Patches, Rate, rates, varied, white_box
from analysis.statistics import Estimate, difference, generator, mean_estimate

RULES = {
    "surrogate": "white-box ≥ made on all widths",
    "transfer": "white-box ≥ best transfer",
    "noise": "white-box ≥ random noise",
    "transferred noise": "best transfer ≥ random noise",
    "size": "grows with size",
    "steps": "not less with more steps",
    "attempts": "not less with more attempts",
    "gradient-free": "located patch ≥ squares",
    "located surrogate": "located patch ≥ made on all widths",
}
HIDES, KEPT, UNTESTED = "gradients mislead", "no sign of masking", "too little tested"


@dataclass(frozen=True)
class Check:
    """A rule on one network at one width: rates of which none may be below the one before it.

    `labels` name the rates, as in ``6×6``.
    """

    rates: Sequence[Rate] = ()
    labels: Sequence[str] = ()

    @property
    def tested(self) -> bool:
        return len(self.rates) > 1

    @property
    def differences(self) -> list[Estimate]:
        """Of each rate and the one before it."""
        found = [
            mean_estimate(rate.samples(), generator(place, rate.by_training)) for place, rate in enumerate(self.rates)
        ]
        return [difference(more, less) for less, more in pairwise(found)]

    @property
    def broken(self) -> bool:
        return any(step.interval[1] < 0 for step in self.differences)


@dataclass(frozen=True)
class Checks:
    """All rules on one network at one width, by their keys in `RULES`.

    `strongest`: the highest rate at 6×6, where patches for each image were made with gradients and without.
    """

    by_rule: dict[str, Check] = field(default_factory=dict)
    strongest: Rate | None = None

    @property
    def broken(self) -> list[str]:
        return [rule for rule, check in self.by_rule.items() if check.broken]

    @property
    def tested(self) -> int:
        return sum(check.tested for check in self.by_rule.values())

    @property
    def verdict(self) -> str:
        """Without attacks that need no gradients there is no telling that these do not mislead."""
        if self.broken:
            return f"{HIDES}: {', '.join(self.broken)}"
        kept = KEPT if self.by_rule["gradient-free"].tested else UNTESTED
        return f"{kept} ({self.tested} of {len(RULES)} rules)"


def checks(family: Patches) -> dict[tuple[str, str], Checks]:
    """(defence, bits) -> the rules on it."""
    attacks = family.attacks
    patch, located = white_box(attacks, "patch_lavan"), white_box(attacks, "patch_located")
    squares, noise = (white_box(attacks, name, universal=False) for name in ("patch_squares", "patch_random"))
    seen = {
        "patch": _at_seen_size(patch),
        "located": _at_seen_size(located),
        "squares": _at_seen_size(squares),
        "noise": _at_seen_size(noise),
        "surrogate": _at_seen_size(_of_all_widths(attacks, patch)),
        "located surrogate": _at_seen_size(_of_all_widths(attacks, located)),
    }
    budgets = _at_seen_size(_of_any_budget(attacks, white_box(attacks, "patch_lavan", universal=False)))
    sizes = _by_cell(patch)
    moved = white_box(family.transfers, "patch_lavan")
    found = {}
    for key in _by_cell(attacks):
        own = {name: part[key] for name, part in seen.items() if key in part}
        budget = budgets.get(key, attacks.iloc[:0])
        sources = _sources(moved, *key)
        by_rule = {
            "surrogate": _check(own, "surrogate", "patch"),
            "transfer": _most_harmful(sources, own.get("patch"), than_source=True),
            "noise": _check(own, "noise", "patch"),
            "transferred noise": _most_harmful(sources, own.get("noise"), than_source=False),
            "size": _series(sizes.get(key, attacks.iloc[:0]), "size", "{0}×{0}", patches=2),
            "steps": _series(_most_crossed(budget, "num_random_init"), "max_iter", "{0}"),
            "attempts": _series(_most_crossed(budget, "max_iter"), "num_random_init", "{0}"),
            "gradient-free": _check(own, "squares", "located"),
            "located surrogate": _check(own, "located surrogate", "located"),
        }
        known = [*own.values(), *sources, *(rows for _, rows in budget.groupby(["max_iter", "num_random_init"]))]
        strongest = max((_rate(rows) for rows in known), key=lambda rate: rate.value, default=None)
        found[key] = Checks(by_rule, strongest if {"located", "squares"} <= own.keys() else None)
    return found


def _compared(*of: pd.DataFrame, labels: Sequence[str] = (), least: int = 1) -> Check:
    """The rates of runs that share training and attack seeds, where these are `least` or more."""
    seeds = [[*zip(rows["training_seed"], rows["seed"], strict=True)] for rows in of]
    shared = set.intersection(*map(set, seeds)) if seeds else set()
    if len(shared) < least:
        return Check()
    kept = (rows[[seed in shared for seed in own]] for rows, own in zip(of, seeds, strict=True))
    return Check([*map(_rate, kept)], labels)


def _rate(rows: pd.DataFrame) -> Rate:
    return rates(rows)[()]


def _check(own: dict[str, pd.DataFrame], less: str, more: str) -> Check:
    return _compared(own[less], own[more]) if less in own and more in own else Check()


def _series(rows: pd.DataFrame, axis: str, form: str, *, patches: int = 1) -> Check:
    """Of runs that differ in one setting, from its lowest value to the highest.

    Args:
        patches: how many there must be of each value. Patches of another size are made anew, and what a single one
            for all images breaks differs from seed to seed.
    """
    values = dict(tuple(rows.groupby(axis)))
    return _compared(*values.values(), labels=[form.format(value) for value in values], least=patches)


def _sources(moved: pd.DataFrame, defence: str, bits: str) -> list[pd.DataFrame]:
    """Of patched images made at each other width of the defence, what they do to the one at `bits`."""
    mine = moved[(moved["defence"] == defence) & (moved["target_bits"] == bits) & (moved["bits"] != bits)]
    return [rows for _, rows in mine[mine["size"] == SIZE].groupby("bits")]


def _most_harmful(sources: Sequence[pd.DataFrame], beside: pd.DataFrame | None, *, than_source: bool) -> Check:
    """The rule with the source of the highest rate: that it is not above `beside`, or not below."""
    if beside is None:
        return Check()
    found = [_compared(*((rows, beside) if than_source else (beside, rows))) for rows in sources]
    place = 0 if than_source else 1
    return max((check for check in found if check.tested), key=lambda check: check.rates[place].value, default=Check())


def _by_cell(attacks: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """By defence and bits."""
    return {(str(defence), str(bits)): rows for (defence, bits), rows in attacks.groupby(["defence", "bits"])}


def _at_seen_size(attacks: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    return _by_cell(attacks[attacks["size"] == SIZE])


def _of_all_widths(attacks: pd.DataFrame, patch: pd.DataFrame) -> pd.DataFrame:
    others = varied(attacks, patch, "surrogate")
    return others[others["surrogate"] == "all"]


def _of_any_budget(attacks: pd.DataFrame, each: pd.DataFrame) -> pd.DataFrame:
    same = varied(attacks, each, "max_iter", "num_random_init")
    return same[same["surrogate"] == ITSELF]


def _most_crossed(budgets: pd.DataFrame, held: str) -> pd.DataFrame:
    """The runs at that value of one part of the budget that has most values of the other, of several the highest."""
    other = "max_iter" if held == "num_random_init" else "num_random_init"
    values = budgets.groupby(held)[other].nunique()
    return budgets[budgets[held] == values[values == values.max()].index.max()] if len(values) else budgets
