import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attacks import per_image_record, summarise, visibility, wilson_interval

LABELS = torch.tensor([0, 1, 2, 0])
CHANGES = {0: {(0, 1): 0.5}, 1: {(0, 0): 0.75, (1, 1): -1.0}}


def images() -> tuple[Tensor, Tensor]:
    """Four images of two channels and three pixels; the first two are changed."""
    x = torch.zeros(4, 2, 1, 3)
    x[1, 1, 0, 1] = 1
    x_adv = x.clone()
    for image, changes in CHANGES.items():
        for (channel, pixel), change in changes.items():
            x_adv[image, channel, 0, pixel] += change
    return x, x_adv


def predicting(classes: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(classes), 3) * 2.0 - 1


def record(adversarial: list[int], targets: Tensor | None = None) -> pd.DataFrame:
    x, x_adv = images()
    return per_image_record(
        torch.tensor([7, 5, 9, 2]), LABELS, x, x_adv, predicting([0, 1, 2, 1]), predicting(adversarial), targets
    )


def test_untargeted_record():
    frame = record([2, 1, 2, 1])
    assert frame["index"].tolist() == [7, 5, 9, 2]
    assert frame["label"].tolist() == [0, 1, 2, 0]
    assert frame["clean_prediction"].tolist() == [0, 1, 2, 1]
    assert frame["adv_prediction"].tolist() == [2, 1, 2, 1]
    assert frame["evaded"].tolist() == [True, False, False, True]
    assert frame["success"].tolist() == [True, False, False, True]
    assert frame["gave_up"].tolist() == [False, False, True, False]
    assert frame["outcome"].tolist() == ["success", "resisted", "attack gave up: returned clean", "success"]
    assert "target" not in frame


def test_distances():
    frame = record([2, 1, 2, 1])
    assert frame["l0"].tolist() == [1, 2, 0, 0]
    assert frame["l1"].tolist() == [0.5, 1.75, 0, 0]
    assert frame["l2"].tolist() == [0.5, 1.25, 0, 0]
    assert frame["linf"].tolist() == [0.5, 1, 0, 0]


def test_margin_is_the_label_over_the_best_other_class():
    assert record([2, 1, 2, 1])["margin"].tolist() == [-2, 2, 2, -2]


def test_correlation_is_pearson_s_over_all_input_values():
    x = torch.tensor([[0.0, 0.25, 0.5, 1.0], [0.0, 0.25, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]]).reshape(3, 1, 2, 2)
    x_adv = torch.tensor([[0.0, 0.125, 0.25, 0.5], [1.0, 0.75, 0.5, 0.0], [0.0, 0.5, 0.5, 1.0]]).reshape(3, 1, 2, 2)
    logits = torch.eye(3)
    frame = per_image_record(torch.arange(3), torch.arange(3), x, x_adv, logits, logits)
    assert frame["correlation"].tolist() == pytest.approx([1.0, -1.0, float("nan")], nan_ok=True)


def test_label_rank_counts_the_classes_above_the_label():
    x = torch.zeros(4, 1, 2, 2)
    logits = torch.tensor([[3.0, 1, 2], [6, 5, 1], [2, 1, 2], [1, 2, 3]])
    frame = per_image_record(torch.arange(4), LABELS, x, x, predicting([0, 1, 2, 0]), logits)
    assert frame["label_rank"].tolist() == [0, 1, 0, 2]
    assert record([2, 1, 2, 1])["label_rank"].tolist() == [1, 0, 0, 1]


def test_targeted_record_asks_for_the_target():
    frame = record([2, 0, 2, 1], targets=torch.tensor([1, 0, 0, 1]))
    assert frame["target"].tolist() == [1, 0, 0, 1]
    assert frame["evaded"].tolist() == [True, True, False, True]
    assert frame["success"].tolist() == [False, True, False, True]
    assert frame["gave_up"].tolist() == [False, False, True, False]
    assert frame["outcome"].tolist() == ["resisted", "success", "attack gave up: returned clean", "success"]


def test_summary_averages_distances_over_successes():
    figures = summarise(record([2, 0, 2, 0]))
    assert figures["n"] == 4
    assert figures["adversarial_accuracy"] == 0.5
    assert figures["evasion_rate"] == 0.5
    assert figures["attack_success_rate"] == 0.5
    assert figures["gave_up"] == 2
    assert (figures["l0"], figures["l1"], figures["l2"], figures["linf"]) == (1.5, 1.125, 0.875, 0.75)
    assert figures["l2_all"] == pytest.approx(1.75 / 4)
    assert figures["linf_all"] == pytest.approx(1.5 / 4)


def test_summary_gives_the_median_too():
    frame = pd.concat([record([2, 0, 2, 0])] * 2 + [record([2, 1, 2, 0])])
    figures = summarise(frame)
    assert figures["l2_median"] == 0.5
    assert figures["l2"] == pytest.approx((3 * 0.5 + 2 * 1.25) / 5)


def test_summary_of_a_targeted_attack_counts_evasion_and_success_apart():
    figures = summarise(record([2, 0, 2, 1], targets=torch.tensor([1, 0, 0, 1])))
    assert figures["adversarial_accuracy"] == 0.25
    assert figures["evasion_rate"] == 0.75
    assert figures["attack_success_rate"] == 0.5
    assert figures["l2"] == pytest.approx(1.25 / 2)


def test_without_success_there_are_no_distances_over_successes():
    figures = summarise(record([0, 1, 2, 0]))
    assert figures["attack_success_rate"] == 0
    assert not {"l0", "l1", "l2", "linf", "l2_median"} & figures.keys()
    assert figures["l2_all"] == pytest.approx(1.75 / 4)


def test_summary_holds_plain_numbers():
    assert all(type(value) in (int, float) for value in summarise(record([2, 0, 2, 0])).values())


def test_summary_carries_the_interval_of_adversarial_accuracy():
    figures = summarise(record([2, 1, 2, 1]))
    low, high = wilson_interval(2, 4)
    assert (figures["adversarial_accuracy_low"], figures["adversarial_accuracy_high"]) == (low, high)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (500, 1000, 0.4691, 0.5309)],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float):
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_the_larger_a_patch_and_the_less_of_the_image_is_left_below_it_the_more_it_shows():
    x = torch.rand(130, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def patched(size: int, opacity: float) -> float:
        x_adv = x.clone()
        x_adv[..., :size, :size].lerp_(torch.zeros(()), opacity)
        return visibility(x, x_adv)["ssim"]

    shown = [patched(0, 1.0), patched(6, 0.25), patched(6, 1.0), patched(10, 1.0)]
    assert shown[0] == pytest.approx(1)
    assert sorted(set(shown), reverse=True) == shown


def test_structural_similarity_of_black_and_white_is_its_constant():
    black = torch.zeros(2, 1, 16, 16)
    assert visibility(black, black + 1)["ssim"] == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-4)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (4, 1, 8, 8)])
def test_no_visibility_of_no_images_or_of_small_ones(shape):
    assert visibility(torch.ones(shape), torch.ones(shape)) == {}
