"""Is a defence real, or does it only hide its gradients? Rules that attacks on a real one keep, and which are broken.

A rule says that one success rate is not below another. It is broken where the 95 % interval of their difference lies
below zero; so of many comparisons where it holds, one in forty is found broken by chance. Rules with several rates
compare each with the one before it, and are found broken by chance more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd

from analysis.patches import ITSELF, SIZE, Patches, Rate, rates, varied, white_box, with_usual_settings
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
HIDES, KEPT, UNTESTED = "gradients mislead", "no sign of masking", "not tested"


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
    """All rules on one network at one width, by their keys in `RULES`; `strongest`: the highest rate at 6×6."""

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
        if not self.tested:
            return UNTESTED
        return f"{HIDES}: {', '.join(self.broken)}" if self.broken else f"{KEPT} ({self.tested} of {len(RULES)} rules)"


def checks(family: Patches) -> dict[tuple[str, str], Checks]:
    """(defence, bits) -> the rules on it."""
    attacks = family.attacks
    patch, located = white_box(attacks, "patch_lavan"), white_box(attacks, "patch_located")
    squares, noise = (white_box(attacks, name, universal=False) for name in ("patch_squares", "patch_random"))
    each = white_box(attacks, "patch_lavan", universal=False)
    seen = {name: _at_seen_size(part) for name, part in (("patch", patch), ("located", located), ("squares", squares))}
    seen["noise"] = _at_seen_size(noise)
    seen["surrogate"] = _of_all_widths(attacks, patch)
    seen["located surrogate"] = _of_all_widths(attacks, located)
    sizes, budgets = rates(patch, "defence", "bits", "size"), _budgets(attacks, each)
    found = {}
    for defence, bits in _cells(attacks):
        key = (defence, bits)
        own = {name: part[key] for name, part in seen.items() if key in part}
        transferred = best_transfer(family.transfers, defence, bits)
        budget = budgets.get(key, {})
        by_rule = {
            "surrogate": _check(own, "surrogate", "patch"),
            "transfer": Check((transferred, own["patch"])) if transferred and "patch" in own else Check(),
            "noise": _check(own, "noise", "patch"),
            "transferred noise": Check((own["noise"], transferred)) if transferred and "noise" in own else Check(),
            "size": _series({size: rate for (*of, size), rate in sizes.items() if tuple(of) == key}, "{0}×{0}"),
            "steps": _series(_along(budget, axis=1), "{0}"),
            "attempts": _series(_along(budget, axis=0), "{0}"),
            "gradient-free": _check(own, "squares", "located"),
            "located surrogate": _check(own, "located surrogate", "located"),
        }
        known = [*own.values(), *budget.values(), *([transferred] if transferred else [])]
        found[key] = Checks(by_rule, max(known, key=lambda rate: rate.value, default=None))
    return found


def best_transfer(transfers: pd.DataFrame, defence: str, bits: str, attack: str = "patch_lavan") -> Rate | None:
    """The highest rate at which patched images made at another width of the defence break the one at `bits`."""
    if transfers.empty:
        return None
    mine = with_usual_settings(transfers[(transfers["attack"] == attack) & (transfers["size"] == SIZE)])
    mine = mine[(mine["defence"] == defence) & (mine["target_bits"] == bits) & (mine["bits"] != bits)]
    return max(rates(mine, "bits").values(), key=lambda rate: rate.value, default=None)


def _cells(attacks: pd.DataFrame) -> list[tuple[str, str]]:
    keys = attacks[["defence", "bits"]].drop_duplicates()
    return list(keys.itertuples(index=False, name=None))


def _at_seen_size(attacks: pd.DataFrame) -> dict[tuple, Rate]:
    return rates(attacks[attacks["size"] == SIZE], "defence", "bits")


def _of_all_widths(attacks: pd.DataFrame, patch: pd.DataFrame) -> dict[tuple, Rate]:
    others = varied(attacks, patch, "surrogate")
    return _at_seen_size(others[others["surrogate"] == "all"])


def _budgets(attacks: pd.DataFrame, each: pd.DataFrame) -> dict[tuple[str, str], dict[tuple[int, int], Rate]]:
    """(defence, bits) -> (attempts, steps) -> rate of a patch for each image."""
    found: dict[tuple[str, str], dict[tuple[int, int], Rate]] = {}
    same = varied(attacks, each, "max_iter", "num_random_init")
    same = same[(same["size"] == SIZE) & (same["surrogate"] == ITSELF)]
    for (defence, bits, attempts, steps), rate in rates(same, "defence", "bits", "num_random_init", "max_iter").items():
        found.setdefault((defence, bits), {})[attempts, steps] = rate
    return found


def _along(budgets: dict[tuple[int, int], Rate], axis: int) -> dict[int, Rate]:
    """Rates by attempts (axis 0) or steps (axis 1), at that number of the other that has most, or the higher."""
    others = Counter(key[1 - axis] for key in budgets)
    held = max(others, key=lambda value: (others[value], value), default=None)
    return {key[axis]: rate for key, rate in budgets.items() if key[1 - axis] == held}


def _check(own: dict[str, Rate], less: str, more: str) -> Check:
    return Check((own[less], own[more])) if less in own and more in own else Check()


def _series(by_value: dict[int, Rate], form: str) -> Check:
    ordered = sorted(by_value.items())
    return Check([rate for _, rate in ordered], [form.format(value) for value, _ in ordered])
