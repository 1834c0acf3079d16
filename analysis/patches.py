"""The patch study as data frames: attacks with patches, the networks they are made on, and which of them compare.

Runs belong to one family if data, model and training recipe are the same: only these are held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from analysis.cells import bits_order
from analysis.statistics import generator, mean_estimate, wilson_interval
from analysis.study import Study

DEFENCES = {
    "none": "undefended",
    "pbat": "PBAT",
    "pbat_finetuned": "PBAT, fine-tuned",
    "dwq": "DWQ",
    "dwq_patch": "DWQ with patches",
    "qadt_r": "QADT-R (ours)",
    "triqdef": "TriQDef (ours)",
}
ATTACKS = {
    "patch_lavan": "LAVAN",
    "patch_google": "Google patch",
    "patch_located": "located patch",
    "patch_squares": "squares",
    "patch_random": "random noise",
}
WIDTHS = ("FP", "8", "5", "4", "2")
ENDS = (WIDTHS[0], WIDTHS[-1])
SIZE = 6  # of the patches in the trainings, in pixels
PLACEMENTS = ("corners", "random")  # those of the trainings: clear of the centre
ITSELF = "itself"
RANDOM_WIDTH = "random"
PARTS = ("A-QAPA", "DBWT", "GIR")
FAMILY = ["data", "model", "recipe"]

_QUANTIZER = "uniform"
_UNIVERSAL = ("patch_lavan", "patch_google")
_STOPPING = ("patch_lavan", "patch_located", "patch_squares")
_NETWORK = [*FAMILY, "defence", "bits", "training_seed"]
_BUDGET = ["max_iter", "num_random_init"]
_SETTINGS = ["placement", "settings", *_BUDGET]
_FIGURES = ["n", "hits", "clean_accuracy", "ssim", "l2", "seconds"]
_ATTACK = ["attack", "universal", "size", "opacity", "target", "surrogate", "stops", "seed", *_SETTINGS]
_OPAQUE = {"target": "None", "size": "0", "placement": "", "universal": "False", "opacity": "1.0"}


@dataclass(frozen=True)
class Rate:
    """The share of images that are broken, of images attacked.

    Attributes:
        by_training: (hits, n) of each attack seed, per training seed.
    """

    by_training: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def n(self) -> int:
        """Images, over all seeds."""
        return sum(n for runs in self.by_training for _, n in runs)

    @property
    def of_trainings(self) -> list[float]:
        """For each training seed the mean over attack seeds."""
        return [fmean(hits / n for hits, n in runs) for runs in self.by_training]

    @property
    def value(self) -> float:
        """The mean over training seeds, as in `mean_estimate`."""
        return fmean(self.of_trainings)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval: Wilson's over the images of a single run, else that of `mean_estimate`."""
        if sum(map(len, self.by_training)) > 1:
            return mean_estimate(self.samples(), generator(self.by_training)).interval
        low, high = wilson_interval(*self.by_training[0][0])
        return float(low), float(high)

    @property
    def spread(self) -> float:
        """Standard deviation between training seeds; NaN with a single one."""
        return stdev(self.of_trainings) if len(self.by_training) > 1 else float("nan")

    def samples(self) -> list[list[np.ndarray]]:
        """Per training seed the zeros and ones of each attack seed, as for `mean_estimate`."""
        return [[np.arange(n) < hits for hits, n in runs] for runs in self.by_training]


@dataclass(frozen=True)
class Patches:
    """What a study holds of patches, on uniformly quantised networks.

    Every table has `fingerprint`, `data`, `model`, `recipe`, `defence` and `training_seed`. `defence` is as in
    ``none`` or ``qadt_r``, of ablated QADT-R with its parts, as in ``qadt_r: DBWT + GIR``; settings in which two
    networks of the same width differ are spelt out.

    Attributes:
        attacks: one row per attack: `bits` (``random`` where a width is drawn for each image), `attack`, `universal`
            (one patch for all images), `size`, `placement`, `opacity`, `target`, `surrogate` (``itself``, a width or
            ``all``), `stops` (at the first success where that is usual, and nowhere else), `max_iter`,
            `num_random_init`, `settings` (the others), `seed`, `n`, `hits`, `clean_accuracy`, `ssim` and `l2` (means
            over all images; NaN where they were not measured), `seconds`; of a cell attacked on several numbers of
            images those on most.
        trainings: one row per training: `bits` (all widths), `seconds`, `epochs`, `steps` (0 where an epoch is all
            training images), `patch_steps` (of the attack within, 0 for none), `hardware`.
        clean: one row per network and width: `bits`, `clean_accuracy` on the test set.
        transfers: `attacks` of the sources, and `target_bits`, `n`, `hits`; within one model.
        to_others: the same to another model, `target_model`.
        alignments: one row per pair of widths and kind, see `pipelines.alignment.alignment_table`;
            `images`: empty for clean ones, else which patch they carry.
        sensitivities: one row per width, kind and place: `bits`, `kind`, `row`, `column`, `success_rate`, `n`; the
            patch's settings as in `attacks`, and the `stride` between places.
    """

    attacks: pd.DataFrame
    trainings: pd.DataFrame
    clean: pd.DataFrame
    transfers: pd.DataFrame
    to_others: pd.DataFrame
    alignments: pd.DataFrame
    sensitivities: pd.DataFrame

    def families(self) -> list[tuple[str, ...]]:
        """Data, model and recipe of all there is, those with most attacks first."""
        tables = (getattr(self, field.name) for field in fields(self))
        return list(dict.fromkeys(tuple(key) for table in tables for key in table[FAMILY].value_counts().index))

    def of(self, family: Sequence[str]) -> Patches:
        """What belongs to one family."""
        wanted = dict(zip(FAMILY, family, strict=True))
        return Patches(**{field.name: _where(getattr(self, field.name), wanted) for field in fields(self)})

    def without_ablations(self) -> Patches:
        """Without QADT-R that lacks parts."""
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        return Patches(**{name: rows[~rows["defence"].map(is_ablated).astype(bool)] for name, rows in tables.items()})


def is_ablated(defence: str) -> bool:
    """
    >>> is_ablated("qadt_r"), is_ablated("qadt_r: DBWT")
    (False, True)
    """
    return defence.startswith("qadt_r:")


def read(study: Study) -> Patches:
    """The patch study within a study; empty tables where it holds none."""
    names = _defence_names(study)
    attacks = _attacks(_uniform(study.attack), names)
    trainings = _trainings(_uniform(study.train), names)
    transfers = _transfers(study, names)
    within = transfers["target_model"] == transfers["model"]
    return Patches(
        attacks,
        trainings.drop(columns="accuracies", errors="ignore"),
        _clean(trainings, attacks),
        transfers[within].drop(columns="target_model"),
        transfers[~within],
        _hung_on(study.alignment, study.alignments, names),
        _hung_on(study.sensitivity, study.sensitivities, names),
    )


def _uniform(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[_text(runs, "quantizer") == _QUANTIZER].reset_index(drop=True) if len(runs) else runs


def _attacks(runs: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    if len(runs):
        runs = runs[_text(runs, "attack").isin(ATTACKS) & (_text(runs, "backend") == "native")]
    if runs.empty:
        return pd.DataFrame(columns=["fingerprint", *_NETWORK, *_ATTACK, *_FIGURES])
    found = _networks(runs, names).join(_settings(runs))
    found = found.assign(
        n=runs["metrics.n"].astype(int),
        clean_accuracy=_numbers(runs, "metrics.clean_accuracy"),
        ssim=_numbers(runs, "metrics.ssim"),
        l2=_numbers(runs, "metrics.l2_all"),
        seconds=_numbers(runs, "metrics.seconds"),
    )
    found["hits"] = found["n"] - (runs["metrics.adversarial_accuracy"] * found["n"]).round().astype(int)
    asked = _whole(runs, "n_requested")
    return found[asked == asked.groupby([found[name] for name in (*_NETWORK, *_ATTACK)]).transform("max")]


def _settings(runs: pd.DataFrame) -> pd.DataFrame:
    """What attacks were given, columns `_ATTACK`."""
    found = pd.DataFrame({name: _text(runs, f"attack.{name}", usual) for name, usual in _OPAQUE.items()})
    found = found.assign(
        attack=_text(runs, "attack"),
        surrogate=_text(runs, "surrogate", ITSELF),
        seed=_text(runs, "seed", "0"),
        size=_whole(runs, "attack.size"),
        opacity=found["opacity"].astype(float),
        **{name: _whole(runs, f"attack.{name}") for name in _BUDGET},
    )
    found["universal"] = (found["universal"] == "True") | (found["attack"] == "patch_google")
    told = {f"params.attack.{name}" for name in (*_OPAQUE, *_BUDGET, "early_stop")}
    others = sorted(name for name in map(str, runs) if name.startswith("params.attack.") and name not in told)
    values = runs[others].rename(columns=lambda name: name.removeprefix("params.attack."))
    found["settings"] = [
        ", ".join(f"{name}={value}" for name, value in row.items() if _is_text(value))
        for row in values.to_dict("records")
    ]
    found["stops"] = _stops_as_usual(runs, found)
    return found[_ATTACK]


def _stops_as_usual(runs: pd.DataFrame, found: pd.DataFrame) -> pd.Series:
    """Whether attacks with a patch for each image stop at their first success on the network itself, and only there."""
    stops = _text(runs, "attack.early_stop", "True") == "True"
    itself = (found["surrogate"] == ITSELF) & (_text(runs, "bits") != RANDOM_WIDTH)
    return (stops == itself) | found["universal"] | ~found["attack"].isin(_STOPPING)


def _trainings(runs: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    """As `Patches.trainings`, and `accuracies` by width."""
    if runs.empty:
        columns = ["seconds", "epochs", "steps", "patch_steps", "hardware", "accuracies"]
        return pd.DataFrame(columns=["fingerprint", *_NETWORK, *columns])
    epochs = _whole(runs, "training.epochs")
    return _networks(runs, names).assign(
        seconds=_numbers(runs, "metrics.seconds"),
        epochs=epochs,
        steps=epochs * _whole(runs, "training.steps_per_epoch"),
        patch_steps=_whole(runs, "defence.objective.adversary.max_iter"),
        hardware=runs["hardware"],
        accuracies=pd.Series([_accuracies(row) for row in runs.to_dict("records")], index=runs.index),
    )


def _accuracies(run: dict) -> dict[str, float]:
    """By width; of QADT-R without DBWT at the one it trains, as the other serves to make patches.

    >>> run = {"params.bits": "FP 2", "metrics.test_accuracy.FP": 0.9, "metrics.test_accuracy.2": 0.8}
    >>> _accuracies(run), _accuracies({**run, f"{_OBJECTIVE}dbwt": "False"})
    ({'FP': 0.9, '2': 0.8}, {'2': 0.8})
    """
    widths = run["params.bits"].split()
    if len(widths) == 1:
        return {widths[0]: run["metrics.test_accuracy"]}
    if run.get(f"{_OBJECTIVE}dbwt") == "False":
        widths = widths[-1:]
    return {bits: run[f"metrics.test_accuracy.{bits}"] for bits in widths}


def _clean(trainings: pd.DataFrame, attacks: pd.DataFrame) -> pd.DataFrame:
    """From trainings; from attacks at widths not trained, or where the training is not in the study."""
    rows = [
        {**row, "bits": bits, "clean_accuracy": accuracy}
        for row in trainings.to_dict("records")
        for bits, accuracy in row["accuracies"].items()
    ]
    columns = ["fingerprint", *_NETWORK, "clean_accuracy"]
    attacked = attacks[attacks["bits"] != RANDOM_WIDTH][columns]
    parts = [part for part in (pd.DataFrame(rows, columns=columns), attacked) if len(part)]
    return pd.concat(parts).dropna().drop_duplicates(_NETWORK, ignore_index=True) if parts else attacked


def _transfers(study: Study, names: pd.Series) -> pd.DataFrame:
    runs = _uniform(study.transfer)
    if len(runs):
        same = _text(runs, "targets.seed") == _text(runs, "training.seed", "0")
        runs = runs[same & _text(runs, "attack").isin(ATTACKS) & (_text(runs, "apply") == "examples")]
    if runs.empty or study.transfers.empty:
        return pd.DataFrame(columns=["fingerprint", *_NETWORK, *_ATTACK, "target_model", "target_bits", "n", "hits"])
    sources = _networks(runs, names).join(_settings(runs)).assign(target_model=_text(runs, "targets.model"))
    rows = sources.merge(study.transfers[["fingerprint", "target_bits", "transfer_rate", "n"]], on="fingerprint")
    return rows.assign(hits=(rows["transfer_rate"] * rows["n"]).round().astype(int)).drop(columns="transfer_rate")


def _hung_on(runs: pd.DataFrame, table: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    """The rows of a table with what is known of their runs."""
    runs = _uniform(runs)
    if runs.empty or table.empty:
        return pd.DataFrame(columns=["fingerprint", *_NETWORK, "images"])
    known = _networks(runs, names).join(_settings(runs)).assign(stride=_whole(runs, "stride"))
    at, pixels = _text(runs, "patched"), known["size"].astype(str)
    known["images"] = known["attack"].map(ATTACKS) + " " + pixels + "×" + pixels + " made at " + at
    known["images"] = known["images"].where(at != "", "")
    return known.drop(columns=[name for name in known if name in table and name != "fingerprint"]).merge(
        table, on="fingerprint"
    )


def _networks(runs: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "fingerprint": runs["fingerprint"],
            "data": _text(runs, "data"),
            "model": _text(runs, "model"),
            "recipe": _text(runs, "training.name"),
            "defence": runs["fingerprint"].map(names),
            "bits": _text(runs, "bits"),
            "training_seed": _text(runs, "training.seed", "0"),
        }
    )


def _defence_names(study: Study) -> pd.Series:
    """Fingerprint of a run -> the defence of its network, see `Patches`."""
    tables = [study.train, study.attack, study.transfer, study.alignment, study.sensitivity]
    tables = [part for part in map(_uniform, tables) if len(part)]
    if not tables:
        return pd.Series(dtype=str)
    runs = pd.concat(tables, ignore_index=True)
    names = pd.Series([_name(run) for run in runs.to_dict("records")])
    starts = ("params.defence.", "params.training.", "params.quantizer.")
    told = [name for name in map(str, runs) if name.startswith(starts) and name not in _TOLD]
    settings = runs[told].fillna("").astype(str).rename(columns=_in_short)
    of_family = [*(_text(runs, name) for name in ("data", "model", "training.name")), names]
    told_apart = settings.agg("\n".join, axis=1)
    common = told_apart.groupby([*of_family, told_apart]).transform("size")
    for _, places in runs.groupby([*of_family, _text(runs, "bits")]).groups.items():
        first = told_apart[places].iloc[int(common[places].argmax())]
        usual = settings[told_apart == first].iloc[0]
        for place in places[told_apart[places] != first]:
            odd = settings.loc[place]
            names[place] += "".join(f", {_spelt(name, odd[name])}" for name in _differing(odd, usual))
    return pd.Series(names.to_numpy(), index=runs["fingerprint"])


def _differing(settings: pd.Series, usual: pd.Series) -> list[str]:
    """The names of the settings that differ; where a network starts from says all about its start."""
    names = [str(name) for name in settings.index[settings != usual]]
    return [
        name for name in names if not name.startswith("start.") or name == "start.bits" or "start.bits" not in names
    ]


def _spelt(name: str, value: str) -> str:
    """
    >>> _spelt("max_iter", "5"), _spelt("start.bits", ""), _spelt("widths", "None")
    ('max_iter=5', 'start.bits=none', 'one width')
    """
    return "one width" if (name, value) == ("widths", "None") else f"{name}={value or 'none'}"


def _in_short(column: str) -> str:
    name = column.removeprefix("params.").removeprefix("quantizer.")
    return name.removeprefix("defence.").removeprefix("objective.")


_OBJECTIVE = "params.defence.objective."
_TOLD = {*(f"{_OBJECTIVE}{name}" for name in ("a_qapa", "dbwt", "gir", "widths")), "params.training.seed"}


def _name(run: dict) -> str:
    """
    >>> _name({"params.defence": "qadt_r_fixed", f"{_OBJECTIVE}dbwt": "False", f"{_OBJECTIVE}gir": "none"})
    'qadt_r: A-QAPA'
    """
    name = run.get("params.defence")
    if not isinstance(name, str):
        return "none"
    if not name.startswith("qadt_r"):
        return name
    a_qapa, dbwt, gir = (run.get(f"{_OBJECTIVE}{part}") for part in ("a_qapa", "dbwt", "gir"))
    kept = (a_qapa != "False", dbwt != "False", gir != "none")
    parts = [part for part, there in zip(PARTS, kept, strict=True) if there]
    if gir == "noise":
        parts[-1] = "GIR as noise"
    return "qadt_r" if parts == [*PARTS] else f"qadt_r: {' + '.join(parts) or 'none of them'}"


def white_box(attacks: pd.DataFrame, attack: str, *, universal: bool | None = None) -> pd.DataFrame:
    """An attack's runs made on the network itself, untargeted and opaque, with the settings that most have.

    Of attacks or transfers. Sizes and widths are whatever there is, placements those of the trainings. `universal`:
    one patch for all images, or one for each; None: as is usual for the attack.
    """
    wanted = {"attack": attack, "surrogate": ITSELF, "stops": True, "target": "None", "opacity": 1.0}
    wanted["universal"] = attack in _UNIVERSAL if universal is None else universal
    mine = _where(attacks, wanted)
    return with_usual_settings(mine[mine["placement"].isin(PLACEMENTS)])


def with_usual_settings(attacks: pd.DataFrame) -> pd.DataFrame:
    """Those with the placement, budget and further settings that most have; of as frequent ones the largest budget."""
    if attacks.empty:
        return attacks
    counts = attacks.groupby([*_BUDGET, "placement", "settings"]).size()
    usual = counts[counts == counts.max()].index[-1]
    return _where(attacks, dict(zip(counts.index.names, usual, strict=True)))


def varied(attacks: pd.DataFrame, like: pd.DataFrame, *free: str) -> pd.DataFrame:
    """The attacks with the settings of `like`, which has one of each, but for size, width, and what is `free`."""
    if like.empty:
        return attacks.iloc[:0]
    fixed = [name for name in _ATTACK if name not in ("seed", "size", *free)]
    return _where(attacks, like.iloc[0][fixed].to_dict())


def rates(rows: pd.DataFrame, *by: str) -> dict[tuple, Rate]:
    """Success rates, over all seeds, for each value of the columns `by`."""
    found: dict[tuple, dict[str, list[tuple[int, int]]]] = {}
    for *key, training, hits, n in rows[[*by, "training_seed", "hits", "n"]].itertuples(index=False, name=None):
        found.setdefault(tuple(key), {}).setdefault(training, []).append((hits, n))
    return {key: Rate(tuple(tuple(found[key][training]) for training in sorted(found[key]))) for key in sorted(found)}


def in_order(defences: Iterable[str]) -> list[str]:
    """Each once, as in `DEFENCES`; others behind the one they are a kind of."""
    return sorted(dict.fromkeys(defences), key=lambda name: (_place(name), name))


def _place(defence: str) -> int:
    base = defence.split(":")[0].split(",")[0]
    return [*DEFENCES].index(base) if base in DEFENCES else len(DEFENCES)


def title_of(defence: str) -> str:
    """
    >>> title_of("dwq"), title_of("pbat, adversary.max_iter=5")
    ('DWQ', 'PBAT, adversary.max_iter=5')
    """
    base = defence.split(":")[0].split(",")[0]
    return DEFENCES.get(base, base) + defence.removeprefix(base)


def bits_key(bits: str) -> tuple[int, int, str]:
    """Sorts FP first, then from wide to narrow; ``random`` last."""
    kind, width, text = bits_order(bits)
    return kind, -width, text


def _where(table: pd.DataFrame, wanted: dict) -> pd.DataFrame:
    keep = pd.Series(True, index=table.index)
    for name, value in wanted.items():
        keep &= table[name] == value
    return table[keep]


def _text(runs: pd.DataFrame, name: str, absent: str = "") -> pd.Series:
    column = f"params.{name}"
    return runs[column].fillna(absent).astype(str) if column in runs else pd.Series(absent, index=runs.index)


def _whole(runs: pd.DataFrame, name: str) -> pd.Series:
    """Whole numbers, 0 where there are none."""
    return pd.to_numeric(_text(runs, name, "0"), errors="coerce").fillna(0).astype(int)


def _numbers(runs: pd.DataFrame, name: str) -> pd.Series:
    return runs[name] if name in runs else pd.Series(np.nan, index=runs.index)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
