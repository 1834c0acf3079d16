"""Sensitivity maps of the patch study: which runs' maps belong together, and how far those of two widths agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
import torch

from analysis.patches import ATTACKS, ITSELF, SIZE, bits_key, in_order, with_usual_settings
from attacks.sensitivity import compare_maps

KINDS = ("patch", "noise")
_ONE = ["defence", "attack", "size", "opacity", "stride"]


@dataclass(frozen=True)
class Maps:
    """The maps of a defence's networks for one kind of patch: at each width of the patch and of noise of its size.

    Attributes:
        rows: of `Patches.sensitivities`, from runs that differ in seeds alone.
    """

    defence: str
    attack: str
    size: int
    opacity: float
    stride: int
    rows: pd.DataFrame

    @property
    def patch(self) -> str:
        """As in ``LAVAN 6×6`` or ``LAVAN 8×8, opacity 0.5``."""
        shown = "" if self.opacity == 1 else f", opacity {self.opacity:g}"
        return f"{ATTACKS[self.attack]} {self.size}×{self.size}{shown}"

    @property
    def suffix(self) -> str:
        """For names of files: what tells the patch from an opaque one of the size in the trainings."""
        size = "" if self.size == SIZE else f"-{self.size}x{self.size}"
        return size + ("" if self.opacity == 1 else f"-opacity-{self.opacity:g}")

    @property
    def widths(self) -> list[str]:
        return _widths(self.rows)

    @property
    def images(self) -> list[int]:
        """How many images each map rests on."""
        return [int(_places(cells, "n").to_numpy().max()) for _, cells in self.rows.groupby(["bits", "kind"])]

    def places(self, bits: str, kind: str) -> pd.DataFrame:
        """Success rate by the patch's upper left pixel: rows and columns of the image in pixels; over all seeds."""
        cells = self.rows[(self.rows["bits"] == bits) & (self.rows["kind"] == kind)]
        return _places(cells.assign(hits=cells["success_rate"] * cells["n"]), "hits") / _places(cells, "n")

    def agreements(self) -> pd.DataFrame:
        """How far two widths of a network agree, see `compare_maps`, by pair of widths and kind: means over runs."""
        found = [row for _, run in self.rows.groupby("fingerprint") for row in _compared(run)]
        if not found:
            return pd.DataFrame(columns=["spearman", "top_overlap"])
        return pd.DataFrame(found).groupby(["pair", "kind"], sort=False).mean()


def maps_of(sensitivities: pd.DataFrame) -> list[Maps]:
    """The maps of `Patches.sensitivities`, those of attacks with the settings that most have."""
    if sensitivities.empty:
        return []
    plain = sensitivities[(sensitivities["target"] == "None") & (sensitivities["surrogate"] == ITSELF)]
    usual = pd.concat([with_usual_settings(plain[plain["attack"] == attack]) for attack in ATTACKS])
    found = []
    for key in usual[_ONE].drop_duplicates().sort_values(_ONE[1:]).to_dict("records"):
        rows = usual[(usual[_ONE] == pd.Series(key)).all(axis=1)]
        found.append(Maps(**{str(name): value for name, value in key.items()}, rows=rows))
    order = in_order(usual["defence"])
    return sorted(found, key=lambda maps: order.index(maps.defence))


def _compared(run: pd.DataFrame) -> Iterable[dict]:
    widths = _widths(run)
    for kind in KINDS:
        grids = {
            bits: torch.tensor(_places(cells, "success_rate").to_numpy())
            for bits, cells in run[run["kind"] == kind].groupby("bits")
        }
        for a, b in combinations(widths, 2):
            yield {"pair": f"{a}-{b}", "kind": kind, **compare_maps(grids[a], grids[b])}


def _places(cells: pd.DataFrame, values: str) -> pd.DataFrame:
    return cells.pivot_table(index="row", columns="column", values=values, aggfunc="sum")


def _widths(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["bits"].unique(), key=bits_key)
