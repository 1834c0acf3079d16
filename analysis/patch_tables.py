"""Tables of the patch study: what each defence costs, what it stops, and whether what it seems to stop is real."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from analysis import published
from analysis.patch_checks import RULES, Check, checks
from analysis.patch_maps import KINDS, Maps, maps_of
from analysis.patches import (
    ATTACKS,
    ENDS,
    FAMILY,
    PARTS,
    PLACEMENTS,
    RANDOM_WIDTH,
    SIZE,
    WIDTHS,
    Patches,
    Rate,
    bits_key,
    in_order,
    is_ablated,
    rates,
    title_of,
    varied,
    white_box,
)
from analysis.statistics import mean_difference
from analysis.tables import MISSING, PaperTable, bits_title, counted, in_short, section_title

MEASURES = {
    "cosine": "cosine",
    "edge_iou": "edge IoU",
    "hog_cosine": "HOG cosine",
    "hog_cosine_centred": "centred HOG cosine",
}
_NONE = "–"
_CLEAN = "clean, %"
_THEIRS = "in TriQDef's paper"
_AS_PUBLISHED = {"patch_lavan": "patch_lavan", "patch_google": "patch_google", "patch_squares": "patchattack"}
_PUBLISHED_TITLES = {"none": "QAT", "pbat": "PBAT", "dwq": "DWQ", "triqdef": "TriQDef"}
_RATES = (
    "Attack success rate: the share of images, all classified correctly without the patch, that are classified wrongly"
)
_INTERVALS = "95 % interval over images and, where there are several, seeds"


def all_tables(patches: Patches) -> list[PaperTable]:
    """Every table, those there are no runs for without sections."""
    whole = patches.without_ablations()
    parts = [make(whole) for make in (headline, clean, success, unseen, visibility, transfer, reality, alignment)]
    return [*parts, ablation(patches), sensitivity(whole), cost(patches)]


def summary(patches: Patches) -> str:
    """What the patch study is, and of what it was made."""
    recipes = ", ".join(f"{section_title(model, data)} ({recipe})" for data, model, recipe in patches.families())
    hardware = ", ".join(sorted({*patches.trainings["hardware"]} - {""}))
    lengths = sorted({_length(row) for row in patches.trainings.to_dict("records")})
    return (
        "QADT-R here is a re-implementation from its abstract, with documented choices where the abstract is silent:"
        " none of its own tables is public, and none is shown. PBAT, DWQ and TriQDef are re-implementations, too; what"
        f" is marked ‘{_THEIRS}’ are numbers of another paper by QADT-R's authors, on other networks. The networks"
        f" are {recipes}, uniformly quantised; {len(patches.trainings):,} trainings"
        f"{f' of {_listed(lengths)}' if lengths else ''}{f' on {hardware}' if hardware else ''}, where the papers train"
        f" for 160 to 200 epochs, and {len(patches.attacks):,} attacks. Rates are those of these networks alone;"
        " ¹ marks verdicts on one training of each."
    )


def _length(training: dict) -> str:
    """
    >>> _length({"steps": 600, "epochs": 5}), _length({"steps": 0, "epochs": 30})
    ('600 steps', '30 epochs')
    """
    return f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"


def headline(patches: Patches) -> PaperTable:
    """Each defence at the widest and the narrowest width: test accuracy, and what white-box patches break."""
    table = PaperTable(
        "patch-headline",
        f"{_RATES}, in brackets the {_INTERVALS}. LAVAN and the Google patch are one patch for all images, the others"
        f" one for each; trained on were patches of {SIZE}×{SIZE}. Strongest: the highest rate at {SIZE}×{SIZE} of all"
        " attacks in ‘Is the defence real?’.",
        title="Patches in short",
    )
    used = []
    for family, part in _families(patches):
        if part.attacks.empty:
            continue
        known = {attack: white_box(part.attacks, attack) for attack in ATTACKS}
        sizes = known.pop("patch_lavan").groupby("size")
        columns = {f"{ATTACKS['patch_lavan']} {size}×{size}": runs for size, runs in sizes}
        columns |= {ATTACKS[attack]: runs[runs["size"] == SIZE] for attack, runs in known.items()}
        judged = checks(part)
        for bits in ENDS:
            accuracies = part.clean[part.clean["bits"] == bits].groupby("defence")["clean_accuracy"].mean()
            cells = {"test accuracy": {of: f"{100 * accuracy:.2f} %" for of, accuracy in accuracies.items()}}
            for name, runs in columns.items():
                runs = runs[runs["bits"] == bits]
                used.append(runs)
                cells[name] = {of: _brief(rate) for (of,), rate in rates(runs, "defence").items()}
            results = {of: result.strongest for (of, width), result in judged.items() if width == bits}
            cells["strongest"] = {of: _brief(rate) for of, rate in results.items() if rate}
            frame = pd.DataFrame({name: column for name, column in cells.items() if column}, dtype=object)
            frame = frame.reindex(in_order(frame.index)).rename(index=title_of).fillna(MISSING)
            _add(table, f"{_title(family)}, {bits_title(bits)}", frame.rename_axis("defence"))
    _say_sizes(table, used)
    return table


def _brief(rate: Rate) -> str:
    return in_short(rate.value, rate.interval)


def clean(patches: Patches) -> PaperTable:
    """Clean test accuracy by defence and width."""
    table = PaperTable(
        "patch-clean",
        "Test accuracy (%) without attacks, mean ± standard deviation where there are several training seeds. Columns"
        f" ‘{_THEIRS}’ are what TriQDef's authors report for their ResNet-56: not our networks, not QADT-R's numbers.",
        title="Clean accuracy",
    )
    for family, part in _families(patches):
        columns: dict[str, dict[str, str]] = {}
        for (defence, bits), seeds in part.clean.groupby(["defence", "bits"])["clean_accuracy"]:
            columns.setdefault(str(defence), {})[str(bits)] = _with_spread(100 * seeds.mean(), 100 * seeds.std(), 2)
        frame = _by_defence(columns)
        if len(frame) and family[0] == "cifar10" and family[1].startswith("resnet"):
            frame = frame.join(_published("clean_accuracy", scale=100, digits=1)).fillna(_NONE)
        _add(table, _title(family), frame)
    return table


def success(patches: Patches) -> PaperTable:
    """Attack success rates of patches like those of the trainings."""
    table = PaperTable(
        "patch-attacks",
        f"{_RATES} once a patch of {SIZE}×{SIZE} pixels lies on them. In brackets the {_INTERVALS}. The row ‘random’"
        " has a width drawn for each image, as in DWQ's inference. Columns"
        f" ‘{_THEIRS}’ are what TriQDef's authors report for their ResNet-56 and patches as in the training: not ours,"
        " not QADT-R's; their PatchAttack is black-box, as our squares are.",
        title="Patches as in the training",
    )
    used = []
    for family, part in _families(patches):
        for attack, name in ATTACKS.items():
            runs = white_box(part.attacks, attack)
            runs = runs[(runs["size"] == SIZE) & runs["bits"].isin([*WIDTHS, RANDOM_WIDTH])]
            if runs.empty:
                continue
            used.append(runs)
            frame = _by_defence(
                _texts(runs),
                wanted=[*part.attacks["defence"], *part.trainings["defence"]],
            )
            if family[0] == "cifar10" and attack in _AS_PUBLISHED:
                theirs = _published("success_rate", setting="seen", attack=_AS_PUBLISHED[attack])
                frame = frame.join(theirs).fillna(_NONE)
            _add(table, f"{_title(family)}: {name}, {_placed(runs)}", frame)
    _say_sizes(table, used)
    return table


def unseen(patches: Patches) -> PaperTable:
    """Attack success rates of patches unlike those of the trainings, one difference at a time."""
    table = PaperTable(
        "patch-unseen",
        f"{_RATES}. Patches differ from those of the trainings ({SIZE}×{SIZE}, opaque, clear of the centre) in one"
        " thing at a time: their size, their place, how much of the image they cover up (opacity 1: all of what is"
        " below them), or the width of the network that they are made on, 3 bits, that it"
        f" was not trained at. In brackets the {_INTERVALS}. At the end what TriQDef's authors report for their"
        " ResNet-56, without telling what was unseen about the patches: not ours, not QADT-R's.",
        title="Patches unlike those in the training",
    )
    used = []
    for family, part in _families(patches):
        for attack, name in ATTACKS.items():
            known = white_box(part.attacks, attack)
            others = {axis: varied(part.attacks, known, axis) for axis in ("placement", "opacity")}
            for axis, runs in (("size", known), *((axis, rows[rows["size"] == SIZE]) for axis, rows in others.items())):
                runs = runs[runs["bits"].isin(WIDTHS)]
                if runs[axis].nunique() > 1:
                    used.append(runs)
                    _add(table, f"{_title(family)}: {name}, {axis}", _along(runs, axis))
            runs = known[(known["size"] == SIZE) & (known["bits"] != RANDOM_WIDTH)]
            runs = runs[runs["defence"].isin(runs.loc[~runs["bits"].isin(WIDTHS), "defence"])]
            if len(runs):
                used.append(runs)
                _add(table, f"{_title(family)}: {name}, width", _by_defence(_texts(runs)))
    _say_sizes(table, used)
    if table.sections:
        theirs = [
            _published("success_rate", setting=setting, attack="patch_lavan").add_suffix(f", {setting}")
            for setting in ("seen", "unseen")
        ]
        _add(table, "LAVAN in TriQDef's paper", pd.concat(theirs, axis=1))
    return table


def visibility(patches: Patches) -> PaperTable:
    """How much patches show, and what they do to networks without a defence."""
    table = PaperTable(
        "patch-visibility",
        "How much patches of several sizes and opacities show: structural similarity (SSIM) of patched and clean image,"
        " 1 where nothing is to be seen, and L2, means over all images. Beside it the attack success rate on networks"
        f" without a defence, with its {_INTERVALS}.",
        title="Visibility of patches",
    )
    used = []
    for family, part in _families(patches):
        for attack, name in ATTACKS.items():
            runs = varied(part.attacks, white_box(part.attacks, attack), "opacity")
            runs = runs[(runs["defence"] == "none") & runs["bits"].isin(WIDTHS) & runs["ssim"].notna()]
            runs = runs.assign(patch=list(map(_patch_title, runs["size"], runs["opacity"])))
            if runs["patch"].nunique() < 2:
                continue
            used.append(runs)
            shown = runs.groupby("patch")[["ssim", "l2"]].mean().to_dict("index")
            rows = {patch: {"SSIM": f"{of['ssim']:.3f}", "L2": f"{of['l2']:.2f}"} for patch, of in shown.items()}
            for (patch, bits), text in _texts_by(runs, "patch", "bits"):
                rows[patch][bits] = text
            columns = ["SSIM", "L2", *sorted({*runs["bits"]}, key=bits_key)]
            frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).fillna(MISSING)
            _add(table, f"{_title(family)}: {name}", frame.sort_values("SSIM", ascending=False).rename_axis("patch"))
    _say_sizes(table, used)
    return table


def _patch_title(size: int, opacity: float) -> str:
    return f"{_value_title(size)}, {_value_title(opacity)}" if opacity < 1 else _value_title(size)


def ablation(patches: Patches) -> PaperTable:
    """QADT-R without some of its parts."""
    table = PaperTable(
        "patch-ablation",
        "Our re-implementation of QADT-R with and without its three parts: patches made inside the quantised network"
        " (A-QAPA), widths trained in turn (DBWT; without it one network for each width) and the gradient regulariser"
        " (GIR). Without DBWT A-QAPA and GIR find no other width at FP, so that there the four are one network."
        f" {_RATES}, under LAVAN, in brackets the {_INTERVALS}; and clean test accuracy. What a part changes: the mean"
        " difference between networks with it and without it, over the four pairs that differ in nothing else, in"
        " brackets the 95 % t interval over the pairs, which holds what trainings differ by.",
        title="The parts of QADT-R",
    )
    used = []
    for family, part in _families(patches):
        runs = white_box(part.attacks, "patch_lavan")
        runs = runs[runs["defence"].map(_is_qadt_r).astype(bool)]
        if not runs["defence"].map(is_ablated).any():
            continue
        used.append(runs)
        ablated = runs[runs["defence"].map(is_ablated)]
        runs = runs[runs["size"].isin(ablated["size"]) & runs["bits"].isin(ablated["bits"])]
        networks = part.clean[part.clean["defence"].map(_is_qadt_r) & part.clean["bits"].isin(ablated["bits"])]
        accuracies = networks.groupby(["defence", "bits"])["clean_accuracy"]
        texts: dict[tuple[str, str], dict[str, str]] = {}
        values: dict[tuple[str, str], dict[str, float]] = {}
        for (defence, bits), found in accuracies:
            column, row = (_CLEAN, str(bits)), _parts(str(defence))
            values.setdefault(column, {})[row] = 100 * found.mean()
            texts.setdefault(column, {})[row] = f"{100 * found.mean():.2f}"
        for (size, bits, defence), rate in rates(runs, "size", "bits", "defence").items():
            column, row = (f"{size}×{size}", bits), _parts(defence)
            values.setdefault(column, {})[row] = rate.value
            texts.setdefault(column, {})[row] = _rate_text(rate)
        columns = sorted(texts, key=lambda key: (key[0] != _CLEAN, len(key[0]), key[0], bits_key(key[1])))
        rows = [*_COMBINATIONS, *sorted({*runs["defence"].map(_parts)} - {*_COMBINATIONS})]
        frame = pd.DataFrame({column: texts[column] for column in columns}).reindex(rows).fillna(MISSING)
        _add(table, _title(family), frame.rename_axis("parts"))
        whole = [column for column in columns if {*_COMBINATIONS} <= values[column].keys()]
        effects = {column: _effects(values[column], 2 if column[0] == _CLEAN else 3) for column in whole}
        _add(table, f"{_title(family)}: what a part changes", pd.DataFrame(effects).rename_axis("part"))
    _say_sizes(table, used)
    return table


def _effects(values: Mapping[str, float], digits: int) -> dict[str, str]:
    """Part of QADT-R -> the mean difference that it makes beside the same others, with its interval over these.

    >>> _effects({row: 0.5 - 0.2 * ("GIR" in row) for row in _COMBINATIONS}, 1)["GIR"]
    '-0.2 (-0.2 … -0.2)'
    """
    texts = {}
    for part in PARTS:
        without = [kept for count in (0, 1, 2) for kept in combinations(PARTS, count) if part not in kept]
        differences = [values[_combination((part, *kept))] - values[_combination(kept)] for kept in without]
        mean, low, high = mean_difference(differences)
        texts[part] = f"{mean:+.{digits}f} ({low:+.{digits}f} … {high:+.{digits}f})"
    return texts


def transfer(patches: Patches) -> PaperTable:
    """Which widths' patched images break which widths."""
    table = PaperTable(
        "patch-transfer",
        "Patched images made at one width (rows) and shown to another width (columns) of the same defence: the share"
        " that the target gets wrong, of images that both get right without the patch. Targets of another model have"
        " the defence, not the weights, of the source. In TriQDef's paper (Table 1) a LAVAN patch made at FP breaks"
        " 73.1 % of the images of an undefended ResNet-56 at 2 bits: not our network.",
        title="Transfer of patched images between widths",
    )
    cells: list[Rate] = []
    for family, part in _families(patches):
        for target, attack, defence, rows in _matrices(part):
            found = rates(rows, "bits", "target_bits")
            cells += found.values()
            frame = pd.Series({key: f"{rate.value:.3f}" for key, rate in found.items()}).unstack()
            frame = _sorted(_sorted(frame).T).T.fillna(MISSING)
            title = f"{_title(family)}: {title_of(defence)}, {ATTACKS[attack]}{target and f', to {target}'}"
            _add(table, title, frame.rename_axis("made at"))
    if cells:
        sizes = [rate.n for rate in cells]
        widest = max(np.ptp(rate.interval) for rate in cells) / 2
        table.caption += f" n = {counted(sizes)}; 95 % intervals are at most ± {widest:.3f}."
    return table


def _matrices(part: Patches) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """The transfers of each matrix, with its target (no name within the model), attack and defence."""
    for target, rows in _by_target(part):
        for attack in ATTACKS:
            mine = white_box(rows, attack)
            mine = mine[mine["size"] == SIZE]
            for defence in in_order(mine["defence"]):
                yield target, attack, defence, mine[mine["defence"] == defence]


def _by_target(part: Patches) -> Iterator[tuple[str, pd.DataFrame]]:
    """The transfers within the model, without a name, and those to each other model."""
    yield "", part.transfers
    for model in map(str, part.to_others["target_model"].unique()):
        yield section_title(model, ""), part.to_others[part.to_others["target_model"] == model]


def reality(patches: Patches) -> PaperTable:
    """For each defence and width, the rules that attacks on a real defence keep."""
    table = PaperTable(
        "patch-reality",
        "A defence that only hides its gradients makes attacks that follow them weak, not the network robust. Each"
        " column is a rule that holds where gradients lead to the worst patch; it is broken (✘) where the 95 % interval"
        " of the difference lies on the wrong side of zero (by chance alone in one comparison of forty, and a row has"
        " several). Rates are success rates"
        f" at {SIZE}×{SIZE} pixels but under ‘{RULES['size']}’. White-box: one LAVAN patch for all images; made on"
        " all widths: the same on the mean of the network's widths; best transfer: the same from the most harmful"
        " other width; steps and attempts: a LAVAN patch for each image; located patch (follows gradients) and squares"
        " (does not): one for each image, too. A comparison is of runs that share training and attack seeds; with a"
        " single patch for all images its interval tells of the images, and not how far patches differ. Sizes are"
        " compared where there are two patches of each and more."
        " The strongest is the highest rate of all of these, told where located patch and squares were both run.",
        title="Is the defence real?",
    )
    for family, part in _families(patches):
        judged = checks(part)
        for defence in in_order([of for of, _ in judged]):
            rows = {}
            for bits in sorted((bits for of, bits in judged if of == defence), key=bits_key):
                result = judged[defence, bits]
                if result.tested:
                    cells = {RULES[rule]: _checked(check) for rule, check in result.by_rule.items()}
                    strongest = _rate_text(result.strongest) if result.strongest else _NONE
                    rows[bits] = {**cells, "strongest": strongest, "verdict": result.verdict}
            if rows:
                _add(table, f"{_title(family)}: {title_of(defence)}", pd.DataFrame(rows).T)
    return table


def alignment(patches: Patches) -> PaperTable:
    """How alike input gradients are between widths, with what unrelated gradients have."""
    table = PaperTable(
        "patch-alignment",
        "How alike the input gradients of the same image are at two widths: mean with its 95 % interval over images;"
        " beside it what gradients of different images (shuffled) and white noise of the same shape have by chance,"
        f" and what is left after taking off the former (excess). ‘{_THEIRS}’: its values, whose HOG cosines come"
        " without cell size or null; not ours, not QADT-R's.",
        title="Gradient alignment between widths",
    )
    for family, part in _families(patches):
        rows_of = {tuple(map(str, key)): rows for key, rows in part.alignments.groupby(["defence", "images"])}
        names = in_order(defence for defence, _ in rows_of)
        for (defence, images), rows in sorted(rows_of.items(), key=lambda item: (names.index(item[0][0]), item[0][1])):
            title = f"{_title(family)}: {title_of(defence)}{images and f', images with {images}'}"
            _add(table, title, _alignment(rows, beside_theirs=family[0] == "cifar10" and not images))
    return table


def _alignment(rows: pd.DataFrame, *, beside_theirs: bool) -> pd.DataFrame:
    """Rows pairs of widths, columns measures by measured, nulls and excess, perhaps beside TriQDef's paper."""
    means = rows.groupby(["pair", "kind"], sort=False).mean(numeric_only=True)
    frame = pd.DataFrame({pair: _aligned(means.loc[pair]) for pair in means.index.unique("pair")}).T
    if beside_theirs:
        theirs = published.triqdef().query("quantity in @MEASURES")
        theirs = theirs.pivot(index="bits", columns="quantity", values="value").reindex(frame.index)
        for measure in ("cosine", "edge_iou", "hog_cosine"):
            frame[MEASURES[measure], _THEIRS] = [f"{v:.2f}" if pd.notna(v) else _NONE for v in theirs[measure]]
    order = [column for name in MEASURES.values() for column in frame.columns if column[0] == name]
    return frame[[("", "n"), *order]].rename_axis("widths")


def sensitivity(patches: Patches) -> PaperTable:
    """Mean rates of sensitivity maps, and how far those of two widths agree, of the patch and of noise."""
    table = PaperTable(
        "patch-sensitivity",
        "A sensitivity map holds, for each place on a grid over the image, the share of n images, all classified"
        " correctly without the patch, that are classified wrongly once the patch's upper left corner lies there. The"
        " patch is one for all images, made on the width that is mapped; noise of its size, the same at every width,"
        " tells what covering the place does. Which widths were mapped, and on how many images, differs between runs."
        " Agreement of two widths of a network on which places are weak: Spearman's rank correlation over the places,"
        " and the share of the weakest tenth of the places that both have in common, 0.1 by chance; means over runs.",
        title="Where on the image patches work",
    )
    images: list[int] = []
    for family, part in _families(patches):
        rows: dict[tuple[str, str], dict[str, dict[tuple[str, str], str]]] = {}
        for maps in maps_of(part.sensitivities):
            images += maps.images
            grid = f"{maps.patch}, every {maps.stride} pixels"
            for measure, cells in _mapped(maps).items():
                rows.setdefault((grid, measure), {})[title_of(maps.defence)] = cells
        for (grid, measure), found in rows.items():
            columns = sorted({column for cells in found.values() for column in cells}, key=_by_widths)
            frame = pd.DataFrame(found).reindex(pd.MultiIndex.from_tuples(columns)).T.fillna(_NONE)
            _add(table, f"{_title(family)}: {grid}, {measure}", frame.rename_axis("defence"))
    if images:
        table.caption += f" n = {counted(images)} per map."
    return table


def _mapped(maps: Maps) -> dict[str, dict[tuple[str, str], str]]:
    """Measure -> (width or pair of widths, patch or noise) -> text."""
    means = {(bits, kind): f"{maps.places(bits, kind).to_numpy().mean():.3f}" for bits in maps.widths for kind in KINDS}
    found, agreements = {"mean success rate": means}, maps.agreements()
    for measure, name in (("rank correlation", "spearman"), ("overlap of the weakest tenth", "top_overlap")):
        agreed = agreements[name].dropna()
        if len(agreed):
            found[measure] = dict(zip(agreed.index, (f"{value:.2f}" for value in agreed), strict=True))
    return found


def _by_widths(column: tuple[str, str]) -> tuple:
    widths, kind = column
    return [bits_key(bits) for bits in widths.split("-")], KINDS.index(kind)


def cost(patches: Patches) -> PaperTable:
    """What trainings took, against plain quantisation-aware training."""
    table = PaperTable(
        "patch-cost",
        "Seconds of the tracked trainings, mean over trainings, against plain quantisation-aware training with the"
        " same recipe on the same hardware, per step: of the undefended network for as many widths, or else of the"
        " quantised ones for one width. Validation after each epoch, at every width, is within. The trainings ran"
        " beside others on a shared machine, so ratios are rough. PBAT, fine-tuned, is the second stage alone: the"
        " training of PBAT at FP comes before it.",
        title="What the trainings took",
    )
    for family, part in _families(patches):
        for hardware in map(str, part.trainings["hardware"].unique()):
            trainings = part.trainings[part.trainings["hardware"] == hardware]
            rows = {}
            for defence in in_order(trainings["defence"]):
                mine = trainings[trainings["defence"] == defence]
                for bits in map(str, mine["bits"].unique()):
                    rows[f"{title_of(defence)}, {bits}"] = _took(mine[mine["bits"] == bits], _plain(trainings, bits))
            title = _title(family) + (f", {hardware}" if hardware else "")
            _add(table, title, pd.DataFrame(rows).T.rename_axis("network and its bits"))
    return table


def _plain(trainings: pd.DataFrame, bits: str) -> float:
    """Seconds per epoch of plain quantisation-aware training for as many widths, or else one; NaN where none was."""
    plain = trainings[trainings["defence"].isin(["none", "none, one width"]) & (trainings["bits"] != "FP")]
    of = dict(tuple(plain.groupby(plain["bits"].str.count(" "))))
    rows = of.get(bits.count(" "), of.get(0, plain.iloc[:0]))
    return float((rows["seconds"] / rows["epochs"]).mean())


def _took(group: pd.DataFrame, yardstick: float) -> dict[str, str]:
    per_epoch = (group["seconds"] / group["epochs"]).mean()
    steps = group["steps"].iloc[0]
    return {
        "trainings": str(len(group)),
        "seconds": f"{group['seconds'].mean():,.0f}",
        "epochs": str(group["epochs"].iloc[0]),
        "ms per step": f"{1000 * (group['seconds'] / group['steps']).mean():,.0f}" if steps else _NONE,
        "× plain training": f"{per_epoch / yardstick:.2f}" if np.isfinite(yardstick) else _NONE,
        "steps of the attack within": str(group["patch_steps"].iloc[0] or _NONE),
    }


def _aligned(kinds: pd.DataFrame) -> dict[tuple[str, str], str]:
    rows = kinds.to_dict("index")
    measured = rows["measured"]
    cells = {("", "n"): f"{measured['n']:,.0f}"}
    for measure, name in MEASURES.items():
        cells[name, "measured"] = _interval(measured, measure)
        for kind in ("shuffled", "noise"):
            cells[name, kind] = f"{rows[kind][measure]:.3f}" if kind in rows else _NONE
        cells[name, "excess"] = _interval(measured, f"{measure}_excess", "+")
    return cells


def _interval(row: dict, name: str, sign: str = "") -> str:
    if name not in row or pd.isna(row[name]):
        return _NONE
    return f"{row[name]:{sign}.3f} ({row[f'{name}_low']:{sign}.3f} … {row[f'{name}_high']:{sign}.3f})"


def _checked(check: Check) -> str:
    if not check.tested:
        return _NONE
    mark = "✘" if check.broken else "✔"
    if check.labels:
        return (
            " → ".join(f"{label}: {rate.value:.3f}" for label, rate in zip(check.labels, check.rates, strict=True))
            + f" {mark}"
        )
    less, more = check.rates
    low, high = check.differences[0].interval
    gap = more.value - less.value
    return f"{more.value:.3f} − {less.value:.3f} = {gap:+.3f} ({low:+.3f} … {high:+.3f}) {mark}"


def _along(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Rows widths, columns defence by the values of an axis."""
    titles = {value: _value_title(value) for value in runs[axis].unique()}
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for (defence, value, bits), text in _texts_by(runs, "defence", axis, "bits"):
        columns.setdefault((defence, titles[value]), {})[bits] = text
    ordered = [
        (defence, titles[value]) for defence in in_order(runs["defence"]) for value in sorted(titles, key=_seen_first)
    ]
    frame = _filled(pd.DataFrame({key: columns.get(key, {}) for key in ordered}, dtype=object))
    return frame.rename(columns=title_of, level=0)


def _seen_first(value: object) -> tuple:
    if isinstance(value, float):
        return (-value,)
    return (value,) if isinstance(value, int | np.integer) else (value not in PLACEMENTS, value)


def _value_title(value: float | str) -> str:
    """
    >>> _value_title(8), _value_title(0.5), _value_title("corners"), _value_title("anywhere")
    ('8×8', 'opacity 0.5', 'corners', 'anywhere (unseen)')
    """
    if isinstance(value, float):
        return f"opacity {value:g}"
    if not isinstance(value, str):
        return f"{value}×{value}"
    return value if value in PLACEMENTS else f"{value} (unseen)"


def _by_defence(columns: Mapping[str, Mapping[str, str]], *, wanted: Sequence[str] = ()) -> pd.DataFrame:
    """Rows widths, columns defences; what is lacking at one of the trained widths is marked as missing."""
    if not columns:
        return pd.DataFrame()
    names = in_order([*columns, *wanted])
    return _filled(pd.DataFrame({name: columns.get(name, {}) for name in names}, dtype=object)).rename(columns=title_of)


def _filled(frame: pd.DataFrame) -> pd.DataFrame:
    """With a row for each of the trained widths, and what they lack marked as missing; others need not be there."""
    frame = _sorted(frame.reindex([*dict.fromkeys([*WIDTHS, *frame.index])]))
    trained = frame.loc[frame.index.isin(WIDTHS)].fillna(MISSING)
    return pd.concat([trained, frame.loc[~frame.index.isin(WIDTHS)].fillna(_NONE)]).loc[frame.index]


def _texts(runs: pd.DataFrame) -> dict[str, dict[str, str]]:
    """defence -> bits -> text."""
    columns: dict[str, dict[str, str]] = {}
    for (defence, bits), text in _texts_by(runs, "defence", "bits"):
        columns.setdefault(defence, {})[bits] = text
    return columns


def _texts_by(runs: pd.DataFrame, *by: str) -> Iterable[tuple[tuple, str]]:
    return ((key, _rate_text(rate)) for key, rate in rates(runs, *by).items())


def _rate_text(rate: Rate) -> str:
    """
    >>> _rate_text(Rate((((70, 100),),)))
    '0.700 (0.604 … 0.781)'
    """
    spread = f" ± {rate.spread:.3f}" if np.isfinite(rate.spread) else ""
    return "{:.3f}{} ({:.3f} … {:.3f})".format(rate.value, spread, *rate.interval)


def _say_sizes(table: PaperTable, used: Sequence[pd.DataFrame]) -> None:
    """Say in the caption on how many images and seeds the cells rest, and what the attacks were given."""
    if not used:
        return
    runs = pd.concat(used).drop_duplicates("fingerprint")
    cell = ["attack", "universal", "defence", "bits", "size", "placement", "opacity", *FAMILY]
    sizes = pd.Series([rate.n for rate in rates(runs, *cell).values()])
    usual = int(sizes.mode().iloc[0])
    others = "" if sizes.nunique() == 1 else f" (n from {sizes.min():,} to {sizes.max():,})"
    told = [
        f"{ATTACKS[str(attack)]} {_listed(sorted(set(steps)))} steps"
        for attack, steps in runs.groupby("attack")["max_iter"]
        if steps.any()
    ]
    seeds = (_listed(sorted(set(runs[name]))) for name in ("seed", "training_seed"))
    table.caption += " n = {}{} per cell, over attack seeds {} and training seeds {}.".format(
        f"{usual:,}", others, *seeds
    )
    table.caption += f" {'; '.join(told)}." if told else ""


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _placed(runs: pd.DataFrame) -> str:
    one = "one patch for all images" if runs["universal"].iloc[0] else "a patch for each image"
    return f"{one}, {runs['placement'].iloc[0]}"


def _published(quantity: str, *, scale: float = 1.0, digits: int = 3, **wanted: str) -> pd.DataFrame:
    """Rows widths, columns defences, of TriQDef's ResNet-56 on CIFAR-10."""
    rows = published.triqdef()
    keep = (rows["quantity"] == quantity) & (rows["data"] == "cifar10")
    for name, value in wanted.items():
        keep &= rows[name] == value
    frame = rows[keep].pivot(index="bits", columns="defence", values="value") * scale
    frame = frame[[name for name in _PUBLISHED_TITLES if name in frame]].map(lambda value: f"{value:.{digits}f}")
    return _sorted(frame).rename(columns={name: f"{title} {_THEIRS}" for name, title in _PUBLISHED_TITLES.items()})


def _families(patches: Patches) -> Iterable[tuple[tuple[str, ...], Patches]]:
    return ((family, patches.of(family)) for family in patches.families())


def _title(family: Sequence[str]) -> str:
    data, model, recipe = family
    return f"{section_title(model, data)}, {recipe}"


def _add(table: PaperTable, title: str, frame: pd.DataFrame) -> None:
    if len(frame):
        frame.columns.names = [None] * frame.columns.nlevels
        table.sections[title] = frame


def _is_qadt_r(defence: str) -> bool:
    return defence.split(":")[0].split(",")[0] == "qadt_r"


def _parts(defence: str) -> str:
    """
    >>> _parts("qadt_r"), _parts("qadt_r: DBWT")
    ('A-QAPA + DBWT + GIR', 'DBWT')
    """
    return defence.partition(": ")[2] or " + ".join(PARTS) + defence.removeprefix("qadt_r")


def _combination(kept: Collection[str]) -> str:
    return " + ".join(part for part in PARTS if part in kept) or "none of them"


_COMBINATIONS = [_combination(kept) for count in (3, 2, 1, 0) for kept in combinations(PARTS, count)]


def _with_spread(mean: float, spread: float, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if np.isfinite(spread) else "")


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[sorted(frame.index, key=bits_key)]
