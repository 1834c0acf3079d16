"""The quantities claims speak of, from the paper's tables and from the tracked runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from analysis import patches, published
from analysis.cells import ATTACKS, STUDY_BITS
from analysis.grid import of_one_setting, select, sweeps
from analysis.statistics import (
    Estimate,
    average,
    constant,
    generator,
    mean_estimate,
    rank_correlation,
    rate_estimate,
    shared_resamplings,
    weighted_mean_estimate,
)
from analysis.study import Study

Z_SCORE = 1.0
CORRELATION = 0.3
_LINF_ATTACKS = ("pgd", "square")

Target = Literal["itself", "widths", "capacity", "architecture"]


class AbsentError(LookupError):
    """A source does not have a quantity; says why."""


class Source(Protocol):
    """Where quantities come from; every method raises AbsentError for what it lacks."""

    def adversarial_accuracy(self, model: str, bits: str, attack: str) -> Estimate: ...

    def distance(self, model: str, bits: str, attack: str, name: str) -> Estimate:
        """Mean over successful images of ``l2``, ``linf``, or JSMA's ``l0`` (Table 7)."""

    def strongest(self, model: str, bits: str, attack: str) -> Estimate:
        """Adversarial accuracy against the best of all attacks within the ε of FGSM or UAP, image by image."""

    def boundary_after(self, model: str, bits: str, iterations: int, *, scale: float = 1.0) -> Estimate:
        """Mean L2 of Boundary's images after that many iterations, times `scale`."""

    def unrecognisable(self, model: str, bits: str, rule: str = "correlation") -> Estimate:
        """Share of Boundary's images that look like noise.

        `rule`: ``correlation`` with the clean image below 0.3, or ``z-score`` of the L2, among all of
        them, of at least 1.
        """

    def label_in_top_two(self, model: str, bits: str) -> Estimate:
        """Share of the unrecognisable images whose label is among the two most probable classes."""

    def small_fgsm(self, model: str) -> Estimate:
        """FP adversarial accuracy under FGSM with the paper's barely visible ε (its Figure 7)."""

    def transfer_rate(self, model: str, attack: str, to: Target) -> Estimate:
        """Mean over source and target widths of the transfer rate.

        `to`: the source ``itself``, other ``widths`` of its model, or models of another ``capacity`` or
        ``architecture``.
        """

    def transfer_correlation(self, model: str, kind: str, *, within: bool = False) -> Estimate:
        """Rank correlation over sources of the transfer to own quantised widths and to those of another model.

        `kind`: ``capacity`` or ``architecture``; `within`: ranks within each attack, so that an attack
        that transfers well everywhere does not make the correlation.
        """

    def patch_success(self, defence: str, bits: str, attack: str, size: int, placement: str = "") -> Estimate:
        """Success rate of white-box patches of that side in pixels; empty `placement`: as in the trainings."""

    def patch_transfer(self, defence: str, source: str, target: str, attack: str) -> Estimate:
        """Success rate at width `target` of patched images made at width `source`."""

    def clean_accuracy(self, defence: str, bits: str) -> Estimate:
        """On the test set, without attacks."""


class Paper:
    """The seed paper's Table 6 and the figures of its text; rates are of 3 × 1,000 images."""

    def __init__(self, table6: pd.DataFrame) -> None:
        self._cells = table6.set_index(["model", "bits", "attack"])

    def adversarial_accuracy(self, model: str, bits: str, attack: str) -> Estimate:
        rate = self._value(model, bits, attack, "adversarial_accuracy")
        return rate_estimate(rate, published.IMAGES, generator(model, bits, attack))

    def distance(self, model: str, bits: str, attack: str, name: str) -> Estimate:
        if name not in self._cells:
            raise AbsentError("the paper's text does not give it")
        return Estimate(self._value(model, bits, attack, name), np.array([]), n=published.IMAGES)

    def small_fgsm(self, model: str) -> Estimate:
        return rate_estimate(published.SMALL_EPS_FGSM[model], published.IMAGES, generator(model))

    def unrecognisable(self, model: str, bits: str, rule: str = "correlation") -> Estimate:
        if rule == "z-score":
            raise AbsentError("the paper sorted its images by eye")
        share = published.UNRECOGNISABLE[model, bits] / published.IMAGES
        return rate_estimate(share, published.IMAGES, generator(model, bits))

    def label_in_top_two(self, model: str, bits: str) -> Estimate:
        return rate_estimate(1.0, published.UNRECOGNISABLE[model, bits], generator(model, bits))

    def _value(self, model: str, bits: str, attack: str, column: str) -> float:
        return float(self._cells[column].to_dict()[model, bits, attack])

    def _absent(self, *args: object, **kwargs: object) -> Estimate:
        raise AbsentError("the paper's text does not give it")

    strongest = boundary_after = transfer_rate = transfer_correlation = _absent
    patch_success = patch_transfer = clean_accuracy = _absent


T = TypeVar("T", bound=Callable)


def _remembered(method: T) -> T:
    """Compute each quantity once per source, so that it has the same replicates wherever it is used."""

    @functools.wraps(method)
    def remember(self: Ours, *args: object, **kwargs: object) -> Estimate:
        key = (method.__name__, *args, *sorted(kwargs.items()))
        if key not in self.known:
            try:
                self.known[key] = method(self, *args, **kwargs)
            except AbsentError as reason:
                self.known[key] = reason
        found = self.known[key]
        if isinstance(found, AbsentError):
            raise found
        return found

    return remember  # type: ignore[return-value]


class Ours:
    """The tracked runs; averaged over the training seeds there are.

    Patches are those on ResNet-20 for CIFAR-10 with the training recipe that most were run with.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._images = _by_fingerprint(study.images)
        self._progress = _by_fingerprint(study.progress)
        self._transferred = _by_fingerprint(study.transferred)
        self._sweeps = {model: sweeps(model) for model in published.DATA_OF_MODEL}
        self._selected: dict[tuple[str, str], pd.DataFrame] = {}
        self._patches = _main_family(patches.read(study))
        self.known: dict[tuple, Estimate | AbsentError] = {}

    @_remembered
    def adversarial_accuracy(self, model: str, bits: str, attack: str) -> Estimate:
        runs = self._direct(model, bits, attack)
        kept = [[~part["evaded"].to_numpy() for part in parts] for parts in runs]
        return mean_estimate(kept, generator(model, bits, attack))

    @_remembered
    def control(self, model: str, quantizer: str, attack: str) -> Estimate:
        """Adversarial accuracy of the quantised topology at FP, with a quantiser that does not round."""
        runs = self._runs(model, "controls", quantizer=quantizer, attack=attack)
        if runs.empty:
            raise AbsentError(f"no runs of {attack} on the control {quantizer} of {model}")
        kept = [~self._images[key]["evaded"].to_numpy() for key in runs["fingerprint"]]
        return mean_estimate([kept], generator(model, quantizer, attack))

    @_remembered
    def distance(self, model: str, bits: str, attack: str, name: str = "l2") -> Estimate:
        runs = self._direct(model, bits, attack, "table7" if name == "l0" else "table6")
        values = [[part.loc[part["success"], name].to_numpy() for part in parts] for parts in runs]
        return self._mean(values, model, bits, attack, name)

    @_remembered
    def strongest(self, model: str, bits: str, attack: str) -> Estimate:
        kept = self.kept_by_attack(model, bits, attack)
        if not any(str(name).startswith("pgd") for name in kept):
            raise AbsentError(f"no PGD runs on {model} {bits}")
        resisted = kept.all(axis=1).to_numpy()
        return mean_estimate([[resisted]], generator(model, bits, attack, "strongest"))

    def kept_by_attack(self, model: str, bits: str, attack: str) -> pd.DataFrame:
        """Whether each image keeps its label: rows images, columns the attack and the stronger ones at its ε.

        Images of attack seed 0 on training seed 0 that all the attacks were run on.
        """
        runs = self._runs(model, "table6", bits, attack=attack, seed="0")
        eps = str(published.hyperparameters(model, attack)["eps"])
        stronger = pd.concat([self._runs(model, f"stronger_{name}", bits) for name in _LINF_ATTACKS])
        if len(stronger):
            stronger = stronger[stronger["params.attack.eps"].astype(float) == float(eps)]
        columns = {}
        for _, run in pd.concat([runs, stronger]).iterrows():
            loss = run.get("params.attack.loss")
            name = str(run["params.attack"]) + (f", {loss}" if isinstance(loss, str) else "")
            columns[name.replace("_", "-")] = ~self._images[run["fingerprint"]].set_index("index")["evaded"]
        if not columns:
            raise AbsentError(f"no runs of {attack} on {model} {bits}")
        return pd.DataFrame(columns).dropna().astype(bool)

    def side_by_side(self, model: str, bits: str, attack: str, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The per-image records of the paper's attack and of a sweep's stronger one, on the images of both.

        Attack seed 0 on training seed 0. Without the stronger attack the second is empty.
        """
        runs = [self._runs(model, "table6", bits, attack=attack, seed="0"), self._runs(model, sweep, bits)]
        if runs[0].empty:
            raise AbsentError(f"no runs of {attack} on {model} {bits}")
        usual, stronger = (
            self._images[part["fingerprint"].iloc[0]].set_index("index") if len(part) else pd.DataFrame()
            for part in runs
        )
        both = usual.index.intersection(stronger.index)
        return (usual.loc[both], stronger.loc[both]) if len(stronger) else (usual, stronger)

    @_remembered
    def boundary_after(self, model: str, bits: str, iterations: int, *, scale: float = 1.0) -> Estimate:
        runs = self._runs(model, "stronger_boundary", bits)
        if runs.empty:
            raise AbsentError(f"no long Boundary runs on {model} {bits}")
        if str(iterations) in set(runs["params.attack.max_iter"]):
            images = [self._images[key] for key in runs["fingerprint"]]
            l2 = [part.loc[part["success"], "l2"].to_numpy() * scale for part in images]
            return self._mean([l2], model, bits, iterations)
        found = [self._progress[key] for key in runs["fingerprint"] if key in self._progress]
        at = pd.concat(found) if found else pd.DataFrame({"iteration": []})
        at = at[at["iteration"] == iterations]
        if at.empty:
            raise AbsentError(f"no snapshot of Boundary after {iterations} iterations on {model} {bits}")
        return constant(float(at["l2"].mean()) * scale)

    @_remembered
    def unrecognisable(self, model: str, bits: str, rule: str = "correlation") -> Estimate:
        flags = [_NOISE[rule](part) for part in self._boundary(model, bits)]
        return mean_estimate([flags], generator(model, bits, rule))

    @_remembered
    def label_in_top_two(self, model: str, bits: str) -> Estimate:
        parts = self._boundary(model, bits)
        ranks = [part.loc[_unlike(part), "label_rank"].dropna().to_numpy(dtype=float) for part in parts]
        return self._mean([[values <= 1 for values in ranks]], model, bits, "top two")

    @_remembered
    def small_fgsm(self, model: str) -> Estimate:
        runs = self._runs(model, "figure7", "FP")
        if runs.empty:
            raise AbsentError(f"no FGSM runs with a small ε on {model}")
        kept = [~self._images[key]["evaded"].to_numpy() for key in runs["fingerprint"]]
        return mean_estimate([kept], generator(model, "small"))

    @_remembered
    def transfer_rate(self, model: str, attack: str, to: Target) -> Estimate:
        within = to in ("itself", "widths")
        pairs = self._pairs(model, "transfer_bits" if within else f"transfer_{to}", attack)
        if within:
            pairs = {pair: rate for pair, rate in pairs.items() if (pair[0] == pair[1]) == (to == "itself")}
        if not pairs:
            raise AbsentError(f"no transfer runs of {attack} on {model} to {to}")
        return average(list(pairs.values()))

    @_remembered
    def transfer_correlation(self, model: str, kind: str, *, within: bool = False) -> Estimate:
        points = self.transfer_points(model, kind)
        if len(points) < 4:
            raise AbsentError(f"too few sources of {model} transferred across {kind}")
        if within:
            points[["own", "other"]] = points.groupby("attack")[["own", "other"]].rank(pct=True)
        return rank_correlation(
            points["own"].to_numpy(), points["other"].to_numpy(), generator(model, kind, str(within))
        )

    def transfer_points(self, model: str, kind: str) -> pd.DataFrame:
        """One row per source (`bits`, `attack`): mean transfer rate to its `own` and to `other` quantised widths."""
        rows = []
        for attack in ATTACKS:
            own, other = (self._pairs(model, f"transfer_{where}", attack) for where in ("bits", kind))
            for bits in STUDY_BITS:
                near = [e.value for (source, target), e in own.items() if source == bits != target != "FP"]
                far = [e.value for (source, target), e in other.items() if source == bits and target != "FP"]
                if near and far:
                    rows.append({"bits": bits, "attack": attack, "own": np.mean(near), "other": np.mean(far)})
        return pd.DataFrame(rows, columns=["bits", "attack", "own", "other"])

    @_remembered
    def patch_success(self, defence: str, bits: str, attack: str, size: int, placement: str = "") -> Estimate:
        found = self._patch_rates(attack, placement)
        if (defence, bits, size) not in found:
            raise AbsentError(f"no {size}×{size} patches of {attack} {placement} on {defence} at {bits}")
        return mean_estimate(found[defence, bits, size].samples(), generator(defence, bits, attack, size, placement))

    @_remembered
    def _patch_rates(self, attack: str, placement: str) -> dict[tuple, patches.Rate]:
        runs = patches.white_box(self._patches.attacks, attack)
        if placement:
            elsewhere = patches.varied(self._patches.attacks, runs, "placement")
            runs = elsewhere[elsewhere["placement"] == placement]
        return patches.rates(runs, "defence", "bits", "size")

    @_remembered
    def patch_transfer(self, defence: str, source: str, target: str, attack: str) -> Estimate:
        mine = patches.white_box(self._patches.transfers, attack)
        found = patches.rates(mine[mine["size"] == patches.SIZE], "defence", "bits", "target_bits")
        if (defence, source, target) not in found:
            raise AbsentError(f"no patches of {attack} transferred from {source} to {target} on {defence}")
        return mean_estimate(found[defence, source, target].samples(), generator(defence, source, target, attack))

    @_remembered
    def clean_accuracy(self, defence: str, bits: str) -> Estimate:
        rows = self._patches.clean
        found = rows.loc[(rows["defence"] == defence) & (rows["bits"] == bits), "clean_accuracy"]
        if found.empty:
            raise AbsentError(f"no network of {defence} at {bits}")
        places = np.arange(published.TEST_IMAGES)
        right = [[places < round(accuracy * published.TEST_IMAGES)] for accuracy in found]
        return mean_estimate(right, generator(defence, bits, "clean"))

    def _pairs(self, model: str, sweep: str, attack: str) -> dict[tuple[str, str], Estimate]:
        """(source bits, target bits) -> transfer rate, over all target models and seeds of the sweep.

        Sources and targets share images: replicates draw an image for all pairs and attacks alike.
        """
        if sweep not in self._sweeps[model]:
            return {}
        runs = self._runs(model, sweep, attack=attack)
        found: dict[tuple[str, str], list[Estimate]] = {}
        for _, run in runs.iterrows():
            for target, images in self._transferred[run["fingerprint"]].groupby("target_bits"):
                weights = self._resamplings[images["index"]]
                rate = weighted_mean_estimate(images["evaded"].to_numpy(), weights)
                found.setdefault((run["params.bits"], str(target)), []).append(rate)
        return {pair: average(rates) for pair, rates in found.items()}

    @functools.cached_property
    def _resamplings(self) -> np.ndarray:
        return shared_resamplings(int(self._study.transferred["index"].max()) + 1, generator("transfer"))

    def _direct(self, model: str, bits: str, attack: str, sweep: str = "table6") -> list[list[pd.DataFrame]]:
        """Per training seed and attack seed the per-image record of the paper's attack: `sweep`'s, which is of training
        seed 0, and of the others."""
        runs = self._runs(model, sweep, bits, attack=attack)
        if runs.empty:
            raise AbsentError(f"no runs of {attack} on {model} {bits}")
        runs = of_one_setting(pd.concat([runs, self._runs(model, "training_seeds", bits, attack=attack)]))
        return [
            [self._images[key] for key in group["fingerprint"]] for _, group in runs.groupby("params.training.seed")
        ]

    def _boundary(self, model: str, bits: str) -> list[pd.DataFrame]:
        """Per attack seed the images of Table 6's Boundary, three times a thousand: Figure 6."""
        runs = self._runs(model, "table6", bits, attack="boundary")
        images = [self._images[key] for key in runs["fingerprint"]] if len(runs) else []
        images = [part for part in images if part["correlation"].notna().any()]
        if not images:
            raise AbsentError(f"no Boundary runs with correlations on {model} {bits}")
        return images

    def _runs(self, model: str, sweep: str, bits: str | None = None, **params: str) -> pd.DataFrame:
        if (model, sweep) not in self._selected:
            self._selected[model, sweep] = select(self._study, self._sweeps[model][sweep])
        runs = self._selected[model, sweep]
        wanted = {**params, **({} if bits is None else {"bits": bits})}
        for name, value in wanted.items():
            runs = runs[runs[f"params.{name}"] == value] if len(runs) else runs
        return runs

    def _mean(self, values: Sequence[Sequence[np.ndarray]], *key: object) -> Estimate:
        try:
            return mean_estimate(values, generator(*key))
        except ValueError:
            raise AbsentError(f"no successful images in {' '.join(map(str, key))}") from None


def _main_family(found: patches.Patches) -> patches.Patches:
    ours = [family for family in found.families() if family[:2] == ("cifar10", "resnet20")]
    return found.of(ours[0] if ours else ("", "", ""))


def _unlike(images: pd.DataFrame) -> np.ndarray:
    return (images["success"] & (images["correlation"] < CORRELATION)).to_numpy()


def _far(images: pd.DataFrame) -> np.ndarray:
    l2 = images["l2"].where(images["success"])
    return ((l2 - l2.mean()) / l2.std() >= Z_SCORE).to_numpy()


_NOISE = {"correlation": _unlike, "z-score": _far}


def _by_fingerprint(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if table.empty:
        return {}
    return {str(key): part for key, part in table.groupby("fingerprint", observed=True)}
