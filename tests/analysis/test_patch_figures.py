"""Figures of the patch study, drawn from runs with known rates."""

import numpy as np
import pandas as pd
import pytest

from analysis.paper import make
from analysis.patch_figures import all_figures
from analysis.patch_tables import sensitivity
from analysis.patches import read
from tests.analysis.test_patches import aligned, attacks, study, trainings, transferred


def drawn(runs, start, pictures=None):
    """The figures whose name starts like this: (name, caption, figure)."""
    return [drawing for drawing in all_figures(read(runs), pictures or {}) if drawing[0].startswith(start)]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_transfers_of_patches_of_another_kind_are_not_pooled_with_the_usual_ones():
    runs, table = transferred("none", lambda source, target: 0.4)
    odd = [("attack.opacity", "0.5"), ("attack.target", "3"), ("surrogate", "all"), ("attack.universal", "False")]
    parts = [(runs, table)]
    for name, value in odd:
        key = f"{name}={value} "
        parts.append((
            runs.assign(fingerprint=key + runs["fingerprint"], **{f"params.{name}": value}),
            table.assign(fingerprint=key + table["fingerprint"], transfer_rate=0.9, n=7),
        ))  # fmt: skip
    runs, table = (pd.concat(columns, ignore_index=True) for columns in zip(*parts, strict=True))
    ((_, caption, figure),) = drawn(study(transfer=runs, transfers=table), "patch-transfer")
    assert texts(figure.axes[0]) == ["0.40"] * 9
    assert "n = 100 to 100 per square" in caption


def test_squares_of_transfers_never_run_are_hatched_and_the_caption_says_so():
    runs, table = transferred("none", lambda source, target: 0.4)
    ((_, caption, _),) = drawn(study(transfer=runs, transfers=table), "patch-transfer")
    assert "hatched" not in caption
    ((_, caption, figure),) = drawn(
        study(transfer=runs, transfers=table[table["target_bits"] != "4"]), "patch-transfer"
    )
    assert caption.endswith("; hatched: not run.")
    (axis,) = figure.axes
    assert axis.patch.get_hatch()
    assert np.isnan(axis.images[0].get_array().filled(np.nan)).tolist() == [[False, True, False]] * 3


def test_lines_join_neighbouring_widths_alone_and_points_stand_by_their_width():
    widths = {"none": "FP,8,5,4,2", "pbat": "FP,4,2", "dwq": "FP,8,5,4,2", "qadt_r": "FP,2", "triqdef": "FP,8,2"}
    launches = [
        f"experiment=patch_attacks seed=0 attack=patch_lavan defence={defence} bits={bits}"
        for defence, bits in widths.items()
    ]
    ((_, _, figure),) = drawn(study(attacks(*launches)), "patch-bits")
    lines = {bars.get_label(): bars.lines[0] for bars in figure.axes[0].containers}
    there = {title: np.isfinite(line.get_ydata()).tolist() for title, line in lines.items()}
    assert there["PBAT"] == [True, False, False, True, True]  # FP and 8 to 4 bits are not joined
    assert there["TriQDef (ours)"] == [True, True, False, False, True]
    assert all(abs(line.get_xdata() - np.arange(5)).max() < 0.2 for line in lines.values())


def test_alignment_has_named_axes_and_intervals_that_the_caption_bounds():
    ((_, caption, figure),) = drawn(study(train=trainings("none"), **aligned()), "patch-alignment")
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "cosine, mean", "edge IoU, mean", "HOG cosine, mean", "centred HOG cosine, mean"
    ]  # fmt: skip
    assert "95 % intervals, at most ± 0.010" in caption
    measured = figure.axes[0].containers[0].lines
    assert measured[2][0].get_segments()[0][:, 1] == pytest.approx([0.29, 0.31])
    assert len(measured[1]) == 2  # the caps, which show where a bar is no higher than its marker


def test_captions_of_pictures_say_which_widths_and_images_they_show():
    runs = attacks("experiment=patch_attacks seed=0 attack=patch_lavan defence=none bits=FP,4,2")
    shade = np.zeros((10, 3, 32, 32), np.uint8)
    pictures = {f"{key}.{kind}": shade[0, :, :6, :6] if kind == "patch" else shade
                for key in runs["fingerprint"] for kind in ("patch", "first")}  # fmt: skip
    ((_, caption, figure),) = drawn(study(runs), "patch-pictures", pictures)
    assert [text for axis in figure.axes for text in texts(axis)] == ["undefended, FP", "undefended, 2 bit"]
    assert "Of the widths FP and 2 bits are shown" in caption
    assert "first that the row's network gets right without the patch" in caption


def mapped(rate, *, defence="dwq", key="s", images=50, stride=2, **settings):
    """Maps of one run at FP and 2 bits; `rate`: a function of width, kind, row and column in pixels."""
    told = {"params.bits": "FP 2", "params.stride": str(stride), "fingerprint": key}
    told |= {f"params.attack.{name}": value for name, value in settings.items()}
    runs = attacks(f"experiment=patch_attacks bits=FP seed=0 attack=patch_lavan defence={defence}").assign(**told)
    table = [{"fingerprint": key, "bits": bits, "kind": kind, "row": row, "column": column, "n": images,
              "success_rate": rate(bits, kind, row, column)}
             for bits in ("FP", "2") for kind in ("patch", "noise")
             for row in range(0, 20, stride) for column in range(0, 20, stride)]  # fmt: skip
    return {"sensitivity": runs, "sensitivities": pd.DataFrame(table)}


def together(*parts):
    return {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}


def test_maps_have_axes_in_pixels_and_one_scale_of_colours_for_all_defences():
    strong = mapped(lambda bits, kind, row, column: 0.8 if (bits, kind, row) == ("FP", "patch", 18) else 0.1)
    weak = mapped(lambda bits, kind, row, column: 0.2, defence="triqdef", key="w")
    found = drawn(study(**together(strong, weak)), "patch-sensitivity")
    assert [name for name, _, _ in found] == [
        f"patch-sensitivity-resnet20-{defence}-lavan" for defence in ("dwq", "triqdef")
    ]
    for _, _, figure in found:
        assert [axis.images[0].get_clim() for axis in figure.axes[:4]] == [(0, 0.8)] * 4
        assert figure.get_supxlabel() == "column of the patch's corner, pixels"
        assert figure.get_supylabel() == "row of the patch's corner, pixels"
    image = found[0][2].axes[0].images[0]
    assert image.get_extent() == [-1, 19, 19, -1]  # the place at pixel 18 is drawn around it
    assert image.get_array()[-1].tolist() == [0.8] * 10


def test_maps_of_other_patches_are_figures_of_their_own_and_seeds_are_pooled():
    def flat(rate):
        return lambda bits, kind, row, column: rate

    parts = [
        mapped(flat(0.2), images=300),
        mapped(flat(0.6), key="seed 1", images=100),
        mapped(flat(0.9), key="large", size="8"),
        mapped(flat(0.1), key="faint", opacity="0.5"),
        mapped(flat(0.1), key="coarse", stride=4),
        mapped(flat(1.0), key="targeted", target="3"),
    ]
    found = {name.removeprefix("patch-sensitivity-resnet20-dwq-lavan"): (caption, figure)
             for name, caption, figure in drawn(study(**together(*parts)), "patch-sensitivity")}  # fmt: skip
    assert found.keys() == {"-every-2", "-every-4", "-8x8-every-2", "-opacity-0.5-every-2"}
    caption, figure = found["-every-2"]
    assert "n = 400 images per map" in caption
    assert figure.axes[0].images[0].get_array().tolist() == [pytest.approx([0.3] * 10)] * 10
    assert "LAVAN 6×6, opacity 0.5 patch" in found["-opacity-0.5-every-2"][0]


def test_the_table_beside_the_maps_says_how_far_widths_agree():
    def rate(bits, kind, row, column):
        place = (10 * row + column) / 1000
        return place if kind == "patch" or bits == "FP" else 0.5 - place

    found = study(**together(mapped(rate), mapped(lambda *place: 0.2, defence="triqdef", key="flat")))
    table = sensitivity(read(found))
    title = "ResNet20 on cifar10, resnet_finetune: LAVAN 6×6, every 2 pixels"
    assert [*table.sections] == [
        f"{title}, mean success rate", f"{title}, rank correlation", f"{title}, overlap of the weakest tenth"
    ]  # fmt: skip
    means, ranks, overlaps = table.sections.values()
    assert means.loc["TriQDef (ours)"].tolist() == ["0.200"] * 4
    assert [*means.columns] == [("FP", "patch"), ("FP", "noise"), ("2", "patch"), ("2", "noise")]
    assert ranks.index.tolist() == ["DWQ"]  # a flat map has no ranks
    assert ranks.loc["DWQ"].to_dict() == {("FP-2", "patch"): "1.00", ("FP-2", "noise"): "-1.00"}
    assert overlaps.loc["DWQ"].tolist() == ["1.00", "0.00"]
    assert "n = 50 per map" in table.caption


def test_maps_stand_in_the_report_under_a_heading_of_their_own(tmp_path):
    maps = mapped(lambda bits, kind, row, column: row / 100)
    make(study(train=trainings("none", "dwq"), **maps), tmp_path, "a command")
    report = (tmp_path / "report.md").read_text()
    own = report.split("### Where on the image patches work")[1].split("### What the trainings took")[0]
    assert "A sensitivity map holds" in own
    assert "(figures/patch-sensitivity-resnet20-dwq-lavan.png)" in own
    assert report.count("patch-sensitivity-resnet20-dwq-lavan.png") == 1
