"""What the papers claim, and what holds: ``python -m analysis.claims [--runs results/runs]``.

A claim is a list of contrasts, each the difference of two quantities that is positive if the claim is
right. It is judged twice, by the paper's own Table 6 and by the tracked runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import published
from analysis.cells import ATTACKS, STUDY_BITS
from analysis.grid import MODELS
from analysis.patches import ATTACKS as PATCH_ATTACKS
from analysis.patches import ENDS
from analysis.patches import WIDTHS as TRAINED_WIDTHS
from analysis.quantities import AbsentError, Ours, Paper, Source
from analysis.statistics import Estimate, average, constant, difference
from analysis.study import load

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
WIDTHS = STUDY_BITS[1:]
LOW = ("1", "2", "4")

Quantity = Callable[[Source], Estimate]


@dataclass(frozen=True)
class Contrast:
    """`more` minus `less`, positive if the claim is right; either may be a plain number.

    The name of one that speaks of a single model begins with it.
    """

    name: str
    more: Quantity | float
    less: Quantity | float

    @property
    def model(self) -> str:
        first = self.name.split()[0]
        return first if first in MODELS else ""

    def estimate(self, source: Source) -> Estimate:
        """Raises AbsentError where the source lacks a quantity."""
        return difference(*(constant(q) if isinstance(q, int | float) else q(source) for q in (self.more, self.less)))


@dataclass(frozen=True)
class Claim:
    """A statement of a paper in our words.

    Attributes:
        where: section or observation.
        needs: ``all`` contrasts, ``most`` of them, ``any`` one, or their ``mean``.
        rule: threshold or definition we had to choose.
    """

    key: str
    where: str
    text: str
    contrasts: Sequence[Contrast]
    needs: Literal["all", "most", "any", "mean"] = "all"
    rule: str = ""


@dataclass(frozen=True)
class Finding:
    """One contrast, or the mean of a claim's contrasts, by one source."""

    name: str
    estimate: Estimate
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """A claim by one source; `by_model` is the verdict on each model's contrasts alone, where there are any."""

    claim: Claim
    verdict: str
    findings: list[Finding]
    absent: list[str]
    by_model: dict[str, str]

    @property
    def effect(self) -> Estimate | None:
        """The mean over the contrasts."""
        return average([finding.estimate for finding in self.findings]) if self.findings else None

    @property
    def once_trained(self) -> set[str]:
        """The models judged on one training of each network, so that the spread between trainings is not known."""
        of = {contrast.name: contrast.model for contrast in self.claim.contrasts}
        seeds: dict[str, list[int]] = {}
        for finding in self.findings:
            seeds.setdefault(of[finding.name], []).append(finding.estimate.seeds)
        return {model for model, counts in seeds.items() if max(counts) == 1}


def adversarial_accuracy(model: str, bits: str, attack: str) -> Quantity:
    return methodcaller("adversarial_accuracy", model, bits, attack)


def distance(model: str, bits: str, attack: str, name: str = "l2") -> Quantity:
    return methodcaller("distance", model, bits, attack, name)


def gap(more: Quantity, less: Quantity) -> Quantity:
    return lambda source: difference(more(source), less(source))


def against_fp(attack: str, models: Sequence[str] = MODELS, widths: Sequence[str] = WIDTHS) -> list[Contrast]:
    """Adversarial accuracy at each width minus that at FP."""
    return [
        Contrast(
            f"{model} {bits}", adversarial_accuracy(model, bits, attack), adversarial_accuracy(model, "FP", attack)
        )
        for model in models
        for bits in widths
    ]


def farther_than_fp(
    attack: str, widths: Sequence[str], name: str = "l2", models: Sequence[str] = MODELS
) -> list[Contrast]:
    """Distance at each width minus that at FP."""
    return [
        Contrast(f"{model} {bits}", distance(model, bits, attack, name), distance(model, "FP", attack, name))
        for model in models
        for bits in widths
    ]


def mnist_against_cifar(attack: str) -> list[Contrast]:
    """Adversarial accuracy of Mnist A minus that of ResNet-20 at each width."""
    return [
        Contrast(bits, adversarial_accuracy(MODELS[0], bits, attack), adversarial_accuracy(MODELS[1], bits, attack))
        for bits in STUDY_BITS
    ]


def _mean_of(contrasts: Sequence[Contrast]) -> Contrast:
    """Their mean as one contrast."""
    return Contrast("mean", lambda source: average([c.estimate(source) for c in contrasts]), 0.0)


def _named(name: str, contrasts: Sequence[Contrast]) -> Contrast:
    return Contrast(name, _mean_of(contrasts).more, 0.0)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "boundary-breaks-all",
        "Observation 1",
        "Boundary breaks nearly every image of every network within 15 (MNIST) or 12 (CIFAR-10) iterations.",
        [Contrast(f"{m} {b}", 0.1, adversarial_accuracy(m, b, "boundary")) for m in MODELS for b in STUDY_BITS],
        rule="nearly every: adversarial accuracy below 0.1",
    ),
    Claim(
        "boundary-farther-at-1-bit",
        "Observation 1.1",
        "Boundary images of 1-bit networks are farther from their originals (L2) than those of FP networks.",
        farther_than_fp("boundary", ("1",)),
    ),
    Claim(
        "boundary-farther-when-quantised",
        "Observation 1.1",
        "Boundary images of most quantised networks are farther (L2) than those of the FP network.",
        farther_than_fp("boundary", WIDTHS),
        needs="most",
    ),
    Claim(
        "boundary-stuck-at-1-bit",
        "Observation 1.1, Figure 5",
        "After 1,000 iterations Boundary images of 1-bit Mnist A are still farther than FP's after 200.",
        [
            Contrast(
                "mnist_a 1 at 1,000 – FP at 200",
                methodcaller("boundary_after", "mnist_a", "1", 1000),
                methodcaller("boundary_after", "mnist_a", "FP", 200),
            )
        ],
    ),
    Claim(
        "boundary-no-progress-at-1-bit",
        "Observation 1.1, Figure 5",
        "More iterations do not bring Boundary images of 1-bit Mnist A closer.",
        [
            Contrast(
                "mnist_a 1, L2 at 1,000 – 90 % of that at 15",
                methodcaller("boundary_after", "mnist_a", "1", 1000),
                methodcaller("boundary_after", "mnist_a", "1", 15, scale=0.9),
            )
        ],
        rule="not closer: at 1,000 iterations at least 90 % of the mean L2 at 15",
    ),
    Claim(
        "unrecognisable-only-when-quantised",
        "Observation 1.2",
        "Unrecognisable Boundary images come from quantised networks only.",
        [
            *(Contrast(f"{m} FP", 0.01, methodcaller("unrecognisable", m, "FP")) for m in MODELS),
            *(Contrast(f"{m} 1", methodcaller("unrecognisable", m, "1"), 0.01) for m in MODELS),
        ],
        rule="unrecognisable: correlation of its pixels with the clean image's below 0.3; FP: below 1 %, 1 bit: above",
    ),
    Claim(
        "unrecognisable-are-rare",
        "Observation 1.2",
        "Unrecognisable Boundary images are rare at 1 bit (the paper counts 180 of 3,000 on MNIST, 280 on CIFAR-10).",
        [Contrast(f"{m} 1", 0.1, methodcaller("unrecognisable", m, "1")) for m in MODELS],
        rule="unrecognisable as above; rare: below 10 %",
    ),
    Claim(
        "unrecognisable-keep-the-label-second",
        "Observation 1.2",
        "The true class of every unrecognisable image is among the two most probable ones.",
        [Contrast(f"{m} 1", methodcaller("label_in_top_two", m, "1"), 0.95) for m in MODELS],
        rule="every: more than 95 %",
    ),
    Claim(
        "z-score-finds-the-unrecognisable",
        "companion's code",
        "A z-score of the L2 of at least 1 tells the unrecognisable images of quantised networks: FP has none.",
        [Contrast(f"{m} FP", 0.01, methodcaller("unrecognisable", m, "FP", "z-score")) for m in MODELS],
        rule="none: below 1 %",
    ),
    Claim(
        "cifar-needs-less-fgsm",
        "Observation 2",
        "FGSM with ε = 0.025 on FP ResNet-20 leaves less than FGSM with ε = 0.1 on FP Mnist A.",
        [Contrast("FP", methodcaller("small_fgsm", "mnist_a"), methodcaller("small_fgsm", "resnet20"))],
    ),
    Claim(
        "cifar-needs-less-distance",
        "Observation 2",
        "Attacks that choose how far they go (JSMA, CW, Boundary) go less far (L2) on CIFAR-10 than on MNIST.",
        [
            Contrast(f"{a} {b}", distance("mnist_a", b, a), distance("resnet20", b, a))
            for a in ("jsma", "cw", "boundary")
            for b in STUDY_BITS
        ],
    ),
    Claim(
        "cw-better-on-cifar",
        "Observation 2",
        "CW with the same hyper-parameters breaks more images of ResNet-20 than of Mnist A.",
        mnist_against_cifar("cw"),
    ),
    Claim(
        "fgsm-weaker-when-quantised",
        "Observation 3",
        "Quantised networks keep a higher adversarial accuracy than FP under FGSM.",
        against_fp("fgsm"),
    ),
    Claim(
        "uap-weaker-when-quantised",
        "Observation 3",
        "Quantised networks keep a higher adversarial accuracy than FP under UAP.",
        against_fp("uap"),
    ),
    *(
        Claim(
            f"masking-explains-{attack}",
            "Observation 3",
            f"The advantage under {attack.upper()} is gradient masking: against the strongest attack at the same ε less"
            " of it is left.",
            [
                Contrast(
                    f"{m} {b}",
                    gap(adversarial_accuracy(m, b, attack), adversarial_accuracy(m, "FP", attack)),
                    gap(methodcaller("strongest", m, b, attack), methodcaller("strongest", m, "FP", attack)),
                )
                for m in MODELS
                for b in WIDTHS
            ],
            rule=f"strongest: broken by any of {attack.upper()}, PGD on either loss, Square",
        )
        for attack in ("fgsm", "uap")
    ),
    Claim(
        "cw-farther-at-low-widths",
        "Observation 3",
        "CW has to go farther (L2) at 1, 2 and 4 bits than at FP.",
        farther_than_fp("cw", LOW),
    ),
    Claim(
        "cw-farther-on-mnist",
        "Observation 3",
        "CW has to go farther (L2) on quantised Mnist A than at FP.",
        farther_than_fp("cw", WIDTHS, models=("mnist_a",)),
    ),
    Claim(
        "cw-mnist-more-robust",
        "Observation 3",
        "Quantised Mnist A keeps a higher adversarial accuracy than FP under CW.",
        against_fp("cw", ("mnist_a",)),
    ),
    Claim(
        "cw-breaks-cifar",
        "Observation 3",
        "CW breaks nearly every image of ResNet-20 at every width.",
        [Contrast(f"resnet20 {b}", 0.1, adversarial_accuracy("resnet20", b, "cw")) for b in STUDY_BITS],
        rule="nearly every: adversarial accuracy below 0.1",
    ),
    Claim(
        "jsma-weaker-when-quantised",
        "Observation 4",
        "Quantised networks keep a higher adversarial accuracy than FP under JSMA.",
        against_fp("jsma"),
    ),
    Claim(
        "jsma-changes-more-when-quantised",
        "Observation 4, Table 7",
        "JSMA has to change more input values (L0) in quantised networks than in the FP network, on average.",
        farther_than_fp("jsma", WIDTHS, "l0"),
        needs="mean",
    ),
    Claim(
        "mnist-more-robust",
        "Summary 1",
        "Mnist A is more robust than ResNet-20 under FGSM, UAP, CW and JSMA.",
        [_named(attack, mnist_against_cifar(attack)) for attack in ("fgsm", "uap", "cw", "jsma")],
        rule="per attack, mean over the seven widths",
    ),
    Claim(
        "quantisation-resists",
        "Summary 2",
        "Quantisation resists gradient-based and gradient-free attacks alike: higher adversarial accuracy under FGSM,"
        " UAP, JSMA and CW.",
        [
            _named(f"{model} {attack}", against_fp(attack, (model,)))
            for model in MODELS
            for attack in ("fgsm", "uap", "jsma", "cw")
        ],
        rule="per model and attack, mean over the six widths",
    ),
    *(
        Claim(
            f"{attack}-farther-on-average",
            "Summary 2",
            f"Quantisation makes the images of {name} more distorted (L2), on average over the widths.",
            [_named(model, farther_than_fp(attack, WIDTHS, models=(model,))) for model in MODELS],
        )
        for attack, name in (("boundary", "Boundary"), ("cw", "CW"))
    ),
    Claim(
        "transfer-is-weaker",
        "AST 2024, claim 1",
        "Adversarial examples have less effect on networks of another width than on their own.",
        [
            Contrast(
                f"{m} {a}",
                methodcaller("transfer_rate", m, a, "itself"),
                methodcaller("transfer_rate", m, a, "widths"),
            )
            for m in MODELS
            for a in ATTACKS
        ],
        rule="mean transfer rate to the source itself minus that to the other six widths",
    ),
    Claim(
        "uap-transfers-best",
        "AST 2024, claim 1",
        "UAP transfers between widths better than the other attacks.",
        [
            Contrast(
                f"{m} {a}",
                methodcaller("transfer_rate", m, "uap", "widths"),
                methodcaller("transfer_rate", m, a, "widths"),
            )
            for m in MODELS
            for a in ("fgsm", "jsma", "cw", "boundary")
        ],
    ),
    Claim(
        "strong-at-home-weak-abroad",
        "AST 2024, claim 2",
        "Boundary and CW break their source but not networks of another width.",
        [
            Contrast(
                f"{m} {a}",
                gap(methodcaller("transfer_rate", m, a, "itself"), methodcaller("transfer_rate", m, a, "widths")),
                0.5,
            )
            for m in MODELS
            for a in ("cw", "boundary")
        ],
        rule="the transfer rate falls by more than 0.5 from the source itself to the other widths",
    ),
    Claim(
        "same-architecture-is-not-always-easier",
        "AST 2024, claim 2",
        "Transfer to networks of the same architecture is not consistently better than to those of another.",
        [
            Contrast(
                f"mnist_a {attack}",
                methodcaller("transfer_rate", "mnist_a", attack, "architecture"),
                methodcaller("transfer_rate", "mnist_a", attack, "capacity"),
            )
            for attack in ATTACKS
        ],
        needs="any",
        rule="for some attack the mean transfer rate to LeNet-5 A is the higher, beside that to Mnist B and C",
    ),
    Claim(
        "own-widths-predict-others",
        "AST 2024, claim 3",
        "The mean transferability among a source's own widths predicts that to other capacities and architectures.",
        [
            Contrast(
                f"{m} → {kind}{', within attacks' * within}",
                methodcaller("transfer_correlation", m, kind, within=within),
                0.5,
            )
            for m, kinds in (("mnist_a", ("capacity", "architecture")), ("resnet20", ("capacity",)))
            for kind in kinds
            for within in (False, True)
        ],
        rule="predicts: rank correlation above 0.5 over sources (width × attack), also with ranks taken within attacks",
    ),
)


PATCH_WIDTHS = ("FP", "4", "2")
SEEN = 6
UNSEEN: dict[str, tuple[int, str]] = {"8×8": (8, ""), "10×10": (10, ""), "anywhere": (SEEN, "anywhere")}
_ABSTRACT = "QADT-R, abstract"
_ONE_FOR_ALL = ("patch_lavan", "patch_google")
_ONE_FOR_EACH = ("patch_located", "patch_squares")
_UNLIKE = "with patches larger than in the training, and with ones anywhere, of which a third touch the centre"


def patch_success(defence: str, bits: str, attack: str = "patch_lavan") -> Quantity:
    """Of patches as in the trainings."""
    return methodcaller("patch_success", defence, bits, attack, SEEN)


def unseen_success(defence: str, bits: str, how: str) -> Quantity:
    """Of LAVAN patches that differ from those of the trainings in one thing, a key of `UNSEEN`."""
    return methodcaller("patch_success", defence, bits, "patch_lavan", *UNSEEN[how])


def _apart(a: Quantity, b: Quantity) -> Quantity:
    """The distance between two quantities, whichever is larger."""

    def distance_of(source: Source) -> Estimate:
        found = difference(a(source), b(source))
        return replace(found, value=abs(found.value), draws=np.abs(found.draws))

    return distance_of


def _share(part: float, whole: Quantity) -> Quantity:
    def scaled(source: Source) -> Estimate:
        found = whole(source)
        return replace(found, value=part * found.value, draws=part * found.draws)

    return scaled


def _below_on_unseen(others: Sequence[str], *, by: float = 0.0, of: float = 1.0) -> list[Contrast]:
    """How much less often unseen patches succeed on QADT-R than on another defence.

    Less `by`, and with the other's rate times `of`.
    """
    return [
        Contrast(
            f"{other} {bits}, {how}",
            gap(_share(of, unseen_success(other, bits, how)), unseen_success("qadt_r", bits, how)),
            by,
        )
        for other in others
        for bits in PATCH_WIDTHS
        for how in UNSEEN
    ]


PATCH_CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            key,
            _ABSTRACT,
            f"{patches} 70 % of the images and more even at 2 bits, without a defence.",
            [Contrast(PATCH_ATTACKS[attack], patch_success("none", "2", attack), 0.7) for attack in attacks],
            needs="any",
            rule=f"white-box patches of {SEEN}×{SEEN} pixels, {kind}: the stronger of the attacks breaks that many",
        )
        for key, patches, kind, attacks in (
            ("one-patch-breaks-undefended-2-bit", "One patch for all breaks", "one for all images", _ONE_FOR_ALL),
            ("patches-break-undefended-2-bit", "A patch for each image breaks", "one for each", _ONE_FOR_EACH),
        )
    ),
    Claim(
        "patches-transfer-to-2-bit",
        _ABSTRACT,
        "Patches made at full precision break 70 % of the images and more of the 2-bit network, without a defence.",
        [
            Contrast(PATCH_ATTACKS[attack], methodcaller("patch_transfer", "none", "FP", "2", attack), 0.7)
            for attack in _ONE_FOR_ALL
        ],
        rule=f"one patch of {SEEN}×{SEEN} pixels for all images",
    ),
    *(
        Claim(
            key,
            _ABSTRACT,
            f"{trained} stops patches like those of its training, and not others.",
            [
                Contrast(f"{bits}, {how}", gap(unseen_success(defence, bits, how), patch_success(defence, bits)), 0.2)
                for bits in widths
                for how in UNSEEN
            ],
            needs="most",
            rule=f"success of LAVAN is 0.20 and more higher {_UNLIKE}, for most widths and kinds of patch",
        )
        for key, defence, trained, widths in (
            ("pbat-fails-on-unseen", "pbat", "PBAT", PATCH_WIDTHS),
            (
                "finetuned-pbat-fails-on-unseen",
                "pbat_finetuned",
                "PBAT at full precision, then quantised and fine-tuned,",
                TRAINED_WIDTHS[1:],
            ),
        )
    ),
    Claim(
        "dwq-stops-no-patches",
        _ABSTRACT,
        "DWQ, trained against changes of all pixels, stops patches hardly better than no defence.",
        [
            Contrast(
                f"{bits}, {PATCH_ATTACKS[attack]}",
                0.1,
                _apart(patch_success("dwq", bits, attack), patch_success("none", bits, attack)),
            )
            for bits in PATCH_WIDTHS
            for attack in (*_ONE_FOR_ALL, *_ONE_FOR_EACH)
        ],
        rule=f"success at {SEEN}×{SEEN} within ±0.10 of the undefended; what is shown is 0.10 less the distance",
    ),
    Claim(
        "qadt-r-below-others-on-unseen",
        _ABSTRACT,
        "On unseen patches attacks succeed less often on QADT-R than on PBAT and DWQ.",
        _below_on_unseen(("pbat", "dwq")),
        rule=f"LAVAN {_UNLIKE}; every width and kind",
    ),
    Claim(
        "qadt-r-25-points-below",
        _ABSTRACT,
        "On unseen patches attacks succeed 25 points less often on QADT-R than on PBAT and DWQ.",
        _below_on_unseen(("pbat", "dwq"), by=0.25),
        needs="most",
        rule="as above, by 0.25 and more, for most widths and kinds; the abstract says ‘up to’",
    ),
    Claim(
        "qadt-r-a-quarter-below",
        _ABSTRACT,
        "On unseen patches attacks succeed a quarter less often on QADT-R than on PBAT and DWQ.",
        _below_on_unseen(("pbat", "dwq"), of=0.75),
        needs="most",
        rule="the same 25 % as a share: what is shown is three quarters of the other's rate minus QADT-R's",
    ),
    *(
        Claim(
            key,
            _ABSTRACT,
            f"QADT-R keeps the accuracy on clean images, beside {plain}.",
            [
                Contrast(
                    bits,
                    0.02,
                    gap(methodcaller("clean_accuracy", defence, bits), methodcaller("clean_accuracy", "qadt_r", bits)),
                )
                for bits in widths
            ],
            rule="at most 0.02 less, every width",
        )
        for key, defence, plain, widths in (
            (
                "qadt-r-keeps-clean-accuracy",
                "none",
                "an undefended network of the same widths",
                TRAINED_WIDTHS,
            ),
            (
                "qadt-r-keeps-accuracy-of-one-width",
                "none, one width",
                "undefended networks of one width each",
                ENDS,
            ),
        )
    ),
)

ALL_CLAIMS = (*CLAIMS, *PATCH_CLAIMS)


def judge(claim: Claim, source: Source) -> Judgement:
    """A claim's verdict by one source; contrasts without runs are listed and not judged."""
    found: dict[str, Finding] = {}
    absent = []
    for contrast in claim.contrasts:
        try:
            estimate = contrast.estimate(source)
        except AbsentError as reason:
            absent.append(f"{contrast.name}: {reason}")
            continue
        found[contrast.name] = Finding(contrast.name, estimate, sign(estimate))
    parts = {model: [c for c in claim.contrasts if c.model == model] for model in MODELS}
    by_model = {
        model: _verdict(claim, part, found) for model, part in parts.items() if any(c.name in found for c in part)
    }
    return Judgement(claim, _verdict(claim, claim.contrasts, found), list(found.values()), absent, by_model)


def _verdict(claim: Claim, contrasts: Sequence[Contrast], found: Mapping[str, Finding]) -> str:
    findings = [found[contrast.name] for contrast in contrasts if contrast.name in found]
    if not findings:
        return OPEN
    if claim.needs == "mean":
        whole = len(findings) == len(contrasts)
        return sign(average([finding.estimate for finding in findings])) if whole else OPEN
    return _together([finding.verdict for finding in findings], claim.needs, len(contrasts))


def sign(estimate: Estimate) -> str:
    """Whether an effect is above zero beyond its interval and beyond the spread between training seeds."""
    low, high = estimate.interval
    if np.isnan(low):
        low = high = estimate.value
    beyond = abs(estimate.value) > estimate.spread
    if low > 0 and beyond:
        return HOLDS
    return FAILS if high < 0 and beyond else OPEN


def _together(verdicts: Sequence[str], needs: str, wanted: int) -> str:
    right, wrong = verdicts.count(HOLDS), verdicts.count(FAILS)
    if needs == "all":
        return FAILS if wrong else HOLDS if right == wanted else OPEN
    if needs == "any":
        return HOLDS if right else FAILS if wrong == wanted else OPEN
    return HOLDS if right > wanted / 2 else FAILS if wrong >= wanted / 2 else OPEN


def judgements(source: Source, claims: Sequence[Claim] = CLAIMS) -> list[Judgement]:
    return [judge(claim, source) for claim in claims]


def verdict_table(paper: Sequence[Judgement], ours: Sequence[Judgement]) -> pd.DataFrame:
    """One row per claim: verdict, effect and interval by both sources, and what is missing."""
    rows = []
    for theirs, mine in zip(paper, ours, strict=True):
        row: dict[str, object] = {"claim": mine.claim.key, "where": mine.claim.where, "statement": mine.claim.text}
        for name, judged in (("paper", theirs), ("ours", mine)):
            effect = judged.effect
            low, high = effect.interval if effect else (float("nan"), float("nan"))
            row |= {
                f"{name}_verdict": judged.verdict,
                **{f"{name}_verdict_{model}": judged.by_model.get(model, "") for model in MODELS},
                f"{name}_effect": effect.value if effect else float("nan"),
                f"{name}_low": low,
                f"{name}_high": high,
                f"{name}_contrasts": len(judged.findings),
                f"{name}_holding": sum(f.verdict == HOLDS for f in judged.findings),
                f"{name}_against": sum(f.verdict == FAILS for f in judged.findings),
            }
        row |= {"contrasts": len(mine.claim.contrasts), "needs": mine.claim.needs, "rule": mine.claim.rule}
        rows.append(row)
    return pd.DataFrame(rows)


def contrast_table(judged: Sequence[Judgement]) -> pd.DataFrame:
    """One row per contrast."""
    rows = []
    for judgement in judged:
        for finding in judgement.findings:
            low, high = finding.estimate.interval
            rows.append(
                {
                    "claim": judgement.claim.key,
                    "contrast": finding.name,
                    "effect": finding.estimate.value,
                    "low": low,
                    "high": high,
                    "spread_between_training_seeds": finding.estimate.spread,
                    "n": finding.estimate.n,
                    "training_seeds": finding.estimate.seeds,
                    "verdict": finding.verdict,
                }
            )
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.claims", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="exported study (default: %(default)s)")
    parser.add_argument("--claim", help="show every contrast of one claim")
    chosen = parser.parse_args(arguments)
    try:
        study = load(chosen.runs)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    paper, ours = (judgements(source, ALL_CLAIMS) for source in (Paper(published.table6()), Ours(study)))
    console = Console()
    if chosen.claim:
        table = contrast_table([j for j in ours if j.claim.key == chosen.claim])
        if table.empty:
            print(f"error: no claim {chosen.claim}, or no runs for it", file=sys.stderr)
            return 1
        console.print(
            table.drop(columns="claim").to_string(index=False, float_format="%.3f"), highlight=False, soft_wrap=True
        )
        return 0
    grid = Table("claim", "where", "paper's table", "our runs", "effect (95 %)", "contrasts for/against/of")
    for theirs, mine in zip(paper, ours, strict=True):
        effect = mine.effect
        shown = "no runs" if effect is None else "{:+.3f} ({:+.3f} … {:+.3f})".format(effect.value, *effect.interval)
        counted = [sum(f.verdict == v for f in mine.findings) for v in (HOLDS, FAILS)]
        grid.add_row(
            mine.claim.text,
            mine.claim.where,
            theirs.verdict if theirs.findings else "–",
            mine.verdict if mine.findings else "–",
            shown,
            f"{counted[0]}/{counted[1]}/{len(mine.claim.contrasts)}",
        )
    console.print(grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
