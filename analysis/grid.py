"""The study as data: which runs its tables, figures and verdicts rest on, and the sweeps that make them.

A sweep has the name of its file in ``conf/experiment``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import published
from analysis.cells import ATTACKS, STUDY_BITS, is_as_published
from analysis.patches import ATTACKS as PATCH_ATTACKS
from analysis.patches import WIDTHS as PATCH_WIDTHS
from analysis.study import Study

MODELS = ("mnist_a", "resnet20")
SEEDS = ("0", "1", "2")
_WIDER = {"mnist_a": ("mnist_b", "mnist_c"), "resnet20": ("resnet32",)}
_OTHER = {"mnist_a": ("lenet5_a",)}
CONTROLS = {"mnist_a": ("clip_only",), "resnet20": ("dorefa", "clip_only")}  # Mnist A has one topology
_ENOUGH = {"resnet20": {"cw": 200}}  # on a CPU it takes seconds per image
_LONG_BOUNDARY = {"mnist_a": 100, "resnet20": 20}
_SOURCES = {"mnist_a": 1100, "resnet20": 1300}  # leave 1,000 images that source and target get right
_ENOUGH_SOURCES = {"resnet20": {"cw": 260}}  # leave 200
_SMALL_EPS = {"mnist_a": "0.1", "resnet20": "0.025"}
# the settings that sweeps of the study go through, and those that replicates differ in
_CELL = (
    "data", "model", "bits", "weight_bits", "activation_bits", "quantizer", "defence", "surrogate", "inference",
    "model.net.topology", "attack", "attack.eps", "attack.loss", "attack.max_iter", "attack.num_random_init",
    "attack.size", "attack.placement", "attack.opacity", "defence.objective.a_qapa", "defence.objective.gir",
    "defence.objective.dbwt", "targets.model", "targets.bits", "apply",
)  # fmt: skip
_REPLICATES = {f"params.{name}" for name in ("seed", "training.seed", "targets.seed", "n_requested", "network")}
_UNDEFENDED = {"defence": "", "surrogate": "", "inference": ""}
_PLAIN = {"quantizer": "dorefa", "model.net.topology": "auto", **_UNDEFENDED}
_FIRST = {**_PLAIN, "training.seed": "0"}
_PGD = {"attack": "pgd", "attack.max_iter": "100", "attack.num_random_init": "5"}
_TARGETS = {"targets.seed": "0", "targets.bits": " ".join(STUDY_BITS)}
_PATCHED = "resnet20"
_UNIFORM = {"quantizer": "uniform", "training.seed": "0", "inference": ""}
_LAVAN = {**_UNIFORM, "attack": "patch_lavan", "attack.universal": "True"}
_EACH_LAVAN = {"attack": "patch_lavan", "attack.universal": "False"}
_SWITCHABLE = ("dwq", "dwq_patch", "qadt_r", "triqdef")
_DEFENCES = ("none", "pbat", *_SWITCHABLE)


@dataclass(frozen=True)
class Sweep:
    """The runs one experiment file makes of one model.

    Attributes:
        axes: parameter -> values; a run is wanted for each combination.
        where: parameter -> the value it has in all of them, empty where it is not given.
        avoid: parameters that no run has all with these values.
        as_published: attacks with the hyper-parameters of the seed paper's Table 5.
        images: how many a complete run was asked to attack.
        enough: attack -> how many suffice where the study makes do with fewer.
        least: how many a run must have been asked to attack to be shown.
        pipeline: ``train``, ``attack``, ``transfer``, ``alignment`` or ``sensitivity``.
    """

    name: str
    model: str
    purpose: str
    axes: Mapping[str, tuple[str, ...]]
    where: Mapping[str, str] = field(default_factory=dict)
    as_published: bool = False
    images: int = 1000
    least: int = 200
    pipeline: str = "attack"
    enough: Mapping[str, int] = field(default_factory=dict)
    avoid: Mapping[str, str] = field(default_factory=dict)


def sweeps(model: str) -> dict[str, Sweep]:
    """All sweeps of a model of the seed paper, by name."""
    bits = {"bits": STUDY_BITS}
    budgets = tuple(f"{published.hyperparameters(model, attack)['eps']:g}" for attack in ("fgsm", "uap"))
    grid = {**bits, "attack": ATTACKS}
    enough = _ENOUGH.get(model, {})
    listed = [
        Sweep("table3", model, "Tables 2 and 3", {**bits, "training.seed": SEEDS}, _PLAIN, pipeline="train"),
        Sweep("table6", model, "Table 6, Figure 6, verdicts", {**grid, "seed": SEEDS}, _FIRST, True, enough=enough),
        Sweep(
            "training_seeds",
            model,
            "spread between trainings",
            {**grid, "training.seed": SEEDS[1:]},
            {**_PLAIN, "seed": "0"},
            True,
            least=1000,
            enough=enough,
        ),
        Sweep("table7", model, "Table 7", {**bits, "seed": SEEDS}, {**_FIRST, "attack": "jsma"}, True, 2000, 2000),
        Sweep(
            "stronger_pgd",
            model,
            "stronger attacks",
            {**bits, "attack.eps": budgets, "attack.loss": ("cross_entropy", "margin")},
            {**_FIRST, **_PGD, "seed": "0"},
        ),
        Sweep(
            "stronger_square",
            model,
            "stronger attacks",
            {**bits, "attack.eps": budgets},
            {**_FIRST, "attack": "square", "attack.max_iter": "1000", "seed": "0"},
        ),
        Sweep(
            "stronger_cw",
            model,
            "stronger attacks",
            bits,
            {
                **_FIRST,
                "attack": "cw",
                "variant": "adam",
                "attack.confidence": "0",
                "attack.max_iter": "100",
                "seed": "0",
            },
            enough=enough,
        ),
        Sweep(
            "stronger_boundary",
            model,
            "stronger attacks; Figures 3, 4 and 5",
            bits,
            {**_FIRST, "attack": "boundary", "variant": "closest", "attack.max_iter": "1000", "seed": "0"},
            images=_LONG_BOUNDARY[model],
            least=1,
        ),
        Sweep(
            "figure7",
            model,
            "Figure 7",
            {"seed": SEEDS},
            {**_FIRST, "bits": "FP", "attack": "fgsm", "attack.eps": _SMALL_EPS[model]},
            least=1000,
        ),
        Sweep(
            "controls",
            model,
            "bit width with the topology held fixed",
            {"quantizer": CONTROLS[model], "attack": ATTACKS},
            {**_UNDEFENDED, "bits": "FP", "model.net.topology": "quantized", "training.seed": "0", "seed": "0"},
            True,
            enough=enough,
        ),
    ]
    transfers = {
        "transfer_bits": (model,),
        "transfer_capacity": _WIDER.get(model, ()),
        "transfer_architecture": _OTHER.get(model, ()),
    }
    listed += [
        Sweep(
            name,
            model,
            "transfer",
            {**grid, "targets.model": targets},
            {**_FIRST, **_TARGETS, "apply": "examples"},
            True,
            _SOURCES[model],
            1,
            pipeline="transfer",
            enough=_ENOUGH_SOURCES.get(model, {}),
        )
        for name, targets in transfers.items()
        if targets
    ]
    listed.append(
        Sweep(
            "transfer_perturbation",
            model,
            "UAP transferred as a perturbation",
            bits,
            {**_FIRST, **_TARGETS, "attack": "uap", "apply": "perturbation", "targets.model": model},
            True,
            _SOURCES[model],
            1,
            pipeline="transfer",
        )
    )
    return {sweep.name: sweep for sweep in listed}


def patch_sweeps() -> dict[str, Sweep]:
    """The sweeps of the patch study, by name."""
    grid = {"defence": _DEFENCES, "bits": PATCH_WIDTHS}
    ours = {"surrogate": "", "attack.opacity": "1.0", "attack.target": "None"}
    seen = {"attack.size": "6"}
    moved = {
        **_UNIFORM,
        **ours,
        **seen,
        "seed": "0",
        "apply": "examples",
        "targets.seed": "0",
        "targets.bits": " ".join(PATCH_WIDTHS),
    }
    compared = {"defence": ("none", *_SWITCHABLE)}
    at_all_widths = {**_UNIFORM, "bits": " ".join(PATCH_WIDTHS), "seed": "0"}
    unseen = {"attack.size": ("6", "8", "10"), "attack.placement": ("corners", "anywhere")}
    listed = [
        Sweep(
            "patch_attacks",
            _PATCHED,
            "patches as in the training",
            {**grid, "attack": tuple(PATCH_ATTACKS), "seed": SEEDS[:2]},
            {**_UNIFORM, **ours, **seen},
            avoid=_EACH_LAVAN,
        ),
        Sweep(
            "patch_unseen",
            _PATCHED,
            "patches unlike those in the training",
            {
                "defence": _SWITCHABLE,
                "bits": ("FP", "8", "5", "4", "3", "2"),
                **unseen,
                "seed": SEEDS[:2],
            },
            {**_LAVAN, **ours},
        ),
        Sweep(
            "patch_sizes",
            _PATCHED,
            "patches unlike those in the training",
            {**grid, "defence": ("none", "pbat"), **unseen, "seed": SEEDS[:2]},
            {**_LAVAN, **ours},
        ),
        Sweep(
            "patch_finetuned",
            _PATCHED,
            "patches unlike those in the training",
            {"bits": PATCH_WIDTHS, "attack.size": unseen["attack.size"], "seed": SEEDS[:2]},
            {**_LAVAN, **ours, "defence": "pbat_finetuned"},
        ),
        Sweep(
            "patch_inference",
            _PATCHED,
            "patches as in the training",
            {
                "defence": ("dwq", "dwq_patch"),
                "attack": ("patch_random", "patch_lavan", "patch_located"),
                "seed": SEEDS[:2],
            },
            {**_UNIFORM, **ours, **seen, "inference": "random"},
            avoid=_EACH_LAVAN,
        ),
        Sweep(
            "patch_opacity",
            _PATCHED,
            "patches unlike those in the training",
            {"defence": _DEFENCES, "bits": ("FP", "4", "2"), "attack.opacity": ("0.25", "0.5", "0.75")},
            {**_LAVAN, **ours, **seen, "seed": "0"},
        ),
        Sweep(
            "patch_ablation",
            _PATCHED,
            "the parts of QADT-R",
            {
                "defence": ("qadt_r", "qadt_r_fixed"),
                "defence.objective.a_qapa": ("True", "False"),
                "defence.objective.gir": ("inconsistency", "none"),
                "bits": PATCH_WIDTHS,
                "seed": SEEDS[:2],
            },
            {**_LAVAN, **ours, **seen},
        ),
        Sweep(
            "patch_gir",
            _PATCHED,
            "the parts of QADT-R",
            {
                "defence.objective.gir": ("inconsistency", "noise", "none"),
                "bits": PATCH_WIDTHS,
                "attack.size": unseen["attack.size"],
                "seed": SEEDS[:2],
            },
            {**_LAVAN, **ours, "defence": "qadt_r"},
        ),
        Sweep(
            "patch_strength",
            _PATCHED,
            "is the defence real?",
            {
                "defence": _DEFENCES,
                "bits": ("FP", "4", "2"),
                "attack.max_iter": ("10", "50", "250"),
                "attack.num_random_init": ("1", "5"),
            },
            {**_UNIFORM, **ours, **seen, **_EACH_LAVAN, "seed": "0"},
        ),
        Sweep(
            "patch_surrogate",
            _PATCHED,
            "is the defence real?",
            {
                "defence": _SWITCHABLE,
                "bits": PATCH_WIDTHS,
                "attack": ("patch_lavan", "patch_located"),
                "seed": SEEDS[:2],
            },
            {**_UNIFORM, **ours, **seen, "surrogate": "all"},
            avoid=_EACH_LAVAN,
        ),
        Sweep(
            "patch_transfer",
            _PATCHED,
            "patches transferred between widths",
            {**grid, "attack": ("patch_lavan", "patch_google", "patch_squares")},
            {**moved, "targets.model": _PATCHED},
            images=1300,
            pipeline="transfer",
            avoid=_EACH_LAVAN,
        ),
        Sweep(
            "patch_transfer_model",
            _PATCHED,
            "patches transferred to another model",
            {"bits": PATCH_WIDTHS, "attack": ("patch_lavan", "patch_google")},
            {**moved, "defence": "", "targets.model": "vgg11"},
            images=1300,
            pipeline="transfer",
            avoid=_EACH_LAVAN,
        ),
        Sweep(
            "patch_alignment",
            _PATCHED,
            "gradient alignment",
            compared,
            {**at_all_widths, "patched": ""},
            pipeline="alignment",
        ),
        Sweep(
            "patch_alignment_patched",
            _PATCHED,
            "gradient alignment on patched images",
            compared,
            {**at_all_widths, "patched": "FP"},
            pipeline="alignment",
        ),
        Sweep(
            "patch_sensitivity",
            _PATCHED,
            "where patches do harm",
            compared,
            {**at_all_widths, **_LAVAN, **ours, **seen},
            pipeline="sensitivity",
        ),
    ]
    return {sweep.name: dataclasses.replace(sweep, least=1) for sweep in listed}


def select(study: Study, sweep: Sweep) -> pd.DataFrame:
    """The study's runs that belong to a sweep; of a cell attacked on several numbers of images, one number's.

    Where a cell was attacked on the sweep's number of images and on others, the others are left out; next
    in order is the number that is enough, then those (of at least `sweep.least`) on most.
    """
    runs = getattr(study, sweep.pipeline)
    if runs.empty:
        return runs
    if "defence" in sweep.axes:  # a network that starts from another one is tracked as defence=none
        runs = runs.assign(**{"params.defence": _texts(runs, "defence").replace("", "none")})
    wanted = {**{name: (value,) for name, value in sweep.where.items()}, **sweep.axes, "model": (sweep.model,)}
    wanted["data"] = (published.DATA_OF_MODEL[sweep.model],)
    attacked = sweep.pipeline not in ("train", "alignment")
    if attacked:
        wanted["backend"] = ("native",)
    keep = pd.Series(True, index=runs.index)
    for name, values in wanted.items():
        keep &= _texts(runs, name).isin({_plain(value) for value in values})
    if sweep.avoid:
        keep &= ~np.logical_and.reduce([_texts(runs, name) == _plain(value) for name, value in sweep.avoid.items()])
    runs = runs[keep]
    if not attacked or runs.empty:
        return runs
    if sweep.as_published:
        plain = {f"params.{name}": value for name, value in _PLAIN.items()}  # what controls change is in `where`
        runs = runs[[is_as_published(row) for row in runs.assign(**plain).to_dict("records")]]
    runs = of_one_setting(runs[runs["params.n_requested"].astype(int) >= sweep.least])
    return _of_one_size(runs, sweep) if len(runs) else runs


def of_one_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """Of cells whose runs differ in settings that the study does not sweep, those with the most usual ones.

    So that nothing is averaged over a second recipe or variant: of the settings of a cell's runs (`_CELL`) those are
    kept that most of all `runs` share, the first in the alphabet of equally many.
    """
    if runs.empty:
        return runs
    cell = [f"params.{name}" for name in _CELL if f"params.{name}" in runs]
    others = [name for name in map(str, runs) if name.startswith("params.") and name not in {*cell, *_REPLICATES}]
    texts = runs[[*cell, *others]].fillna("").astype(str)
    settings = texts[others].agg("\n".join, axis=1)
    ranked = pd.DataFrame({"usual": -settings.map(settings.value_counts()), "settings": settings})
    order = ranked.apply(tuple, axis=1)
    cells = texts[cell].agg("\n".join, axis=1)
    return runs[order == order.groupby(cells).transform("min")]


def missing(study: Study, sweep: Sweep) -> list[dict[str, str]]:
    """The combinations of axes without a run on enough images."""
    runs = select(study, sweep)
    if len(runs):
        wanted = _texts(runs, "attack").map(sweep.enough).fillna(sweep.images)
        requested = _texts(runs, "n_requested")
        images = requested.mask(requested == "", _texts(runs, "n"))  # `n` alone: gradients of clean images
        runs = runs[~(pd.to_numeric(images) < wanted)]  # trainings have neither
    have = set(zip(*(_texts(runs, name) for name in sweep.axes), strict=True)) if len(runs) else set()
    combinations = itertools.product(*sweep.axes.values())
    return [
        dict(zip(sweep.axes, values, strict=True)) for values in combinations if tuple(map(_plain, values)) not in have
    ]


def commands(study: Study) -> list[str]:
    """What to launch for everything that is missing: one line per sweep, its missing values listed."""
    lines = []
    for sweep in (*(sweep for model in MODELS for sweep in sweeps(model).values()), *patch_sweeps().values()):
        absent = missing(study, sweep)
        if absent:
            total = len(list(itertools.product(*sweep.axes.values())))
            axes = [f"{name}={','.join(dict.fromkeys(cell[name] for cell in absent))}" for name in _named(sweep)]
            launch = f"python -m pipelines.{sweep.pipeline} -m experiment={sweep.name} model={sweep.model}"
            lines.append(f"{' '.join([launch, *axes])}  # {len(absent)} of {total} cells: {sweep.purpose}")
    return lines


def _named(sweep: Sweep) -> list[str]:
    """The axes to give on the command line; the hyper-parameters that its file sweeps stay as they are there."""
    return [name for name in sweep.axes if not name.startswith("attack.")]


def _of_one_size(runs: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    sizes = runs["params.n_requested"].astype(int)
    enough = _texts(runs, "attack").map(sweep.enough)
    rank = sizes.mask(sizes == enough, 10**9 - 1).mask(sizes == sweep.images, 10**9)
    cells = [_texts(runs, name) for name in ("model", *sweep.axes) if name != "seed"]
    return runs[rank == rank.groupby(cells).transform("max")]


def _texts(runs: pd.DataFrame, name: str) -> pd.Series:
    column = f"params.{name}"
    return runs[column].map(_plain) if column in runs else pd.Series("", index=runs.index)


def _plain(value: object) -> str:
    """Numbers in one spelling.

    >>> _plain("1.0"), _plain("0.250"), _plain("FP"), _plain(None)
    ('1', '0.25', 'FP', '')
    """
    if not isinstance(value, str):
        return ""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value
