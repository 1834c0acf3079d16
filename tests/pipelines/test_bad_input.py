import json
from pathlib import Path

import pytest

MODELS = "cifar_a cifar_b cifar_c lenet5_a lenet5_b lenet5_c mnist_a mnist_b mnist_c resnet20 resnet32"
DIGITS = "digits has 1×28×28"

ART = ["backend=art"]
SQUARE = ["attack=art_any", "attack.class=SquareAttack"]
POISONING = "art.attacks.poisoning.PoisoningAttackBackdoor"

CASES = [
    ("attack", ["model=nope"], MODELS),
    ("attack", ["attack=nope"], "fgsm jsma patch_google patch_lavan"),
    ("attack", ["bits=0"], "bits=0 is not a bit width: use FP, a whole number from 1 to 16"),
    ("attack", ["bits=17"], "bits=17 is not a bit width"),
    ("attack", ["bits=1.5"], "bits=1.5 is not a bit width"),
    ("attack", ["bits=w0a4"], "bits=w0a4 is not a bit width"),
    ("attack", ["attack.eps=1.5"], "attack.eps=1.5 is out of range: it must be a number in [0, 1]"),
    ("attack", ["attack.eps=-0.1"], "attack.eps=-0.1 is out of range"),
    ("attack", ["attack.foo=1"], "--cfg job prints those there are (++attack.foo=1 sets one that not all values"),
    ("attack", ["+attack.foo=1"], "attack=fgsm has no parameter foo with backend=native: it has eps"),
    ("attack", ["attack=cw", "attack.confidence=-1"], "attack.confidence=-1 is out of range"),
    ("attack", ["attack=uap", "+attack.target=3"], "attack=uap has no targeted form"),
    ("attack", ["attack.target=10"], "attack.target=10 is unknown: use a class from 0 to 9"),
    ("attack", ["backend=nope"], "there is no function attacks.nope.fgsm"),
    ("attack", ["attack=pgd", "backend=art"], "there is no function attacks.art.pgd"),
    ("attack", ["attack=pgd", "attack.norm=1"], "attack.norm=1 is unknown to pgd: use inf or 2"),
    ("attack", ["attack=pgd", "attack.loss=hinge"], "attack.loss=hinge is unknown to pgd: use cross_entropy or margin"),
    ("attack", ["attack=pgd", "attack.eps=3"], "attack.eps=3 is out of range: it must be a number in [0, 1]"),
    ("attack", ["attack=boundary", "attack.variant=nope"], "attack.variant=nope is unknown to boundary: use closest"),
    ("attack", ["attack=boundary", "attack.variant=first", *ART], "attack.variant=first is unknown to boundary"),
    ("attack", ["attack=cw", "attack.variant=adam", *ART], "attack.variant=adam is unknown to carlini_wagner"),
    ("attack", ["attack=jsma", "attack.variant=pairwise", *ART], "attack.variant=pairwise is unknown to jsma"),
    ("attack", ["attack=cw", "attack.art_defects=false", *ART], "attack.art_defects=False is unknown"),
    ("attack", ["attack=boundary", "attack.snapshots=[0,2]", *ART], "has no parameter snapshots with backend=art"),
    ("attack", ["attack=uap", "attack.all_passes=true", *ART], "has no parameter all_passes with backend=art"),
    ("attack", ["attack=uap", "attack.craft=train", *ART], "with backend=art crafts on the attacked images only"),
    ("attack", ["attack=fgsm", "+attack.craft=train"], "attack=fgsm with backend=native crafts on the attacked images"),
    ("attack", ["attack=uap", "attack.craft=nope"], "attack.craft=nope is unknown: use attacked or train"),
    ("attack", ["attack=uap", "attack.craft_n=0"], "attack.craft_n=0 is out of range"),
    ("attack", ["attack=art_any"], "attack.class"),
    ("attack", ["attack=art_any", "attack.class=Nope"], "there is no ART attack art.attacks.evasion.Nope"),
    ("attack", ["attack=art_any", "attack.class=os.path.join"], "os.path.join is not an evasion attack of ART"),
    ("attack", ["attack=art_any", f"attack.class={POISONING}"], "PoisoningAttackBackdoor is not an evasion attack"),
    ("attack", [*SQUARE, "++attack.params={epss:0.1}"], "SquareAttack has no parameter epss: it has norm, adv_crit"),
    ("attack", ["n=0"], "n=0 is out of range"),
    ("attack", ["seed=x"], "seed=x must be a whole number"),
    ("attack", ["data=paper", "model=resnet34"], "model=resnet34 has no paper_data"),
    ("attack", ["model=resnet20"], "model=resnet20 takes images of shape 3×32×32, data=" + DIGITS),
    ("attack", ["quantizer=clip_only", "bits=4"], "quantizer=clip_only does not round, so it needs bits=FP"),
    ("attack", ["bits=1", "model.net.topology=fp"], "topology=fp has no place for DoReFa"),
    ("attack", ["data=mnist", "data.download=false", "data.root=nowhere"], "is missing: put the original MNIST"),
    ("attack", ["data=cifar10", "data.download=false", "data.root=nowhere", "model=resnet20"], "lacks data_batch_1"),
    ("attack", ["data=image_folder"], "data.root"),
    ("attack", ["data=image_folder", "data.root=nowhere"], "data.root=nowhere is not a folder"),
    ("attack", ["network=nowhere"], "network=nowhere is neither a folder with a stored network nor an MLflow run id"),
    ("attack", ["work=/proc/nowhere"], "work=/proc/nowhere cannot be written to"),
    ("attack", ["tracking.uri=sqlite:////proc/nowhere/runs.db"], "the tracking store /proc/nowhere/runs.db"),
    ("attack", ["tracking.uri=http://127.0.0.1:9"], "the tracking server http://127.0.0.1:9 does not answer"),
    ("train", ["training.epochs=0"], "epochs and batch_size must be at least 1"),
    ("train", ["+training.precision=16"], "precision=16 is unknown: use 32-true or bf16-mixed"),
    ("train", ["+training.clipped_norm_scale=0"], "training.clipped_norm_scale=0: it must be a number above 0"),
    ("train", ["+training.clipped_norm_scale=x"], "training.clipped_norm_scale=x: it must be a number above 0"),
    ("train", ["trainer.accelerator=tpu"], "trainer.accelerator=tpu is unknown"),
    ("evaluate", [], "no trained mnist_a FP on digits with this recipe is stored"),
    ("evaluate", ["network=nowhere"], "network=nowhere is neither"),
]


# what the attack itself would notice, after the training
LATE = [
    (["attack.eps=null"], "attack.eps=None is out of range"),
    (["attack=boundary", "attack.max_iter=null"], "attack.max_iter=None is out of range"),
    (["attack=pgd", "attack.eps=null"], "attack.eps=None is out of range"),
    (["attack=uap", "attack.eps=0"], "eps=0 leaves no perturbation"),
    (["attack=boundary", "attack.snapshots=[99]"], "snapshots=[99] must lie between 0 and max_iter=15"),
    (["attack=boundary", "attack.snapshots=5"], "snapshots=5"),
    (["attack=boundary", "attack.snapshots=[a]"], "snapshots=['a']"),
    (["attack=uap", "attack.all_passes=maybe"], "attack.all_passes=maybe"),
    (["attack=cw", "attack.art_defects=maybe"], "attack.art_defects=maybe"),
    ([*SQUARE, "attack.params={epss:0.1}"], "SquareAttack has no parameter epss: it has norm, adv_criterion"),
    ([*SQUARE, "attack.params=3"], "attack.params=3"),
    ([*SQUARE, "attack.target=next"], "SquareAttack has no targeted form"),
    (["attack=art_any", "attack.class=3"], "there is no ART attack art.attacks.evasion.3"),
    (["attack=art_any", "attack.class=FrameSaliencyAttack"], "attacker"),
]


@pytest.mark.parametrize(
    ("pipeline", "overrides", "message"), CASES, ids=[" ".join([case[0], *case[1]]) for case in CASES]
)
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["one", "sweep"])
def test_one_line_error_before_anything_is_computed(
    pipeline, overrides, message, mode, command, workspace, capsys, monkeypatch
):
    monkeypatch.setattr("pipelines.attack.run", nothing_runs)
    monkeypatch.setattr("pipelines.train.run", nothing_runs)
    assert command(pipeline, *mode, *overrides) == 1
    assert_one_line_with(message, capsys.readouterr().err)
    assert not list(workspace.rglob("*.ckpt"))
    assert not (workspace / "mlartifacts").exists()


@pytest.mark.parametrize(("overrides", "message"), LATE, ids=[" ".join(case[0]) for case in LATE])
def test_one_line_error_before_the_tracking_store_is_opened(overrides, message, command, capsys, monkeypatch):
    monkeypatch.setattr("pipelines.cells.open_tracker", nothing_runs)
    assert command("attack", *overrides) == 1
    assert_one_line_with(message, capsys.readouterr().err)


def nothing_runs(*args):
    raise AssertionError("it went on")


def assert_one_line_with(message, printed):
    lines = [line for line in printed.splitlines() if not line.startswith("checking")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_sweep_names_every_bad_cell_before_the_first_runs(command, workspace, capsys):
    (workspace / "mlflow.db").unlink()
    assert command("attack", "-m", "bits=FP,0,1,99", "attack=fgsm,cw") == 1
    error = capsys.readouterr().err
    assert "bits=0 " in error
    assert "bits=99 " in error
    assert not (workspace / "mlflow.db").exists()


def test_stored_network_that_is_not_the_one_asked_for(command, workspace, capsys):
    described = {
        "model": "mnist_a", "net": {}, "quantizer": "dorefa", "bits": "1", "classes": [], "fingerprint": "",
        "test_accuracy": 0.5,
    }  # fmt: skip
    (workspace / "stored").mkdir()
    (workspace / "stored" / "network.json").write_text(json.dumps(described))
    assert command("attack", "network=stored", "bits=4") == 1
    assert "is model=mnist_a bits=1 quantizer=dorefa, not model=mnist_a bits=4" in capsys.readouterr().err


def test_stored_examples_that_are_none(command, workspace, capsys):
    assert command("train", "training.epochs=1") == 0
    Path("examples.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
    assert command("evaluate", "training.epochs=1", "examples=examples.safetensors") == 1
    assert "holds no stored adversarial examples" in capsys.readouterr().err
    assert not (workspace / "hacked").exists()


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["one", "sweep"])
def test_stored_network_that_was_cut_short(mode, command, workspace, capsys):
    assert command("train", "bits=1", "training.epochs=1", "trainer.threads=1") == 0
    weights = next(workspace.rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    for pipeline in ("attack", "evaluate"):
        assert command(pipeline, *mode, "bits=1", f"network={weights.parent}") == 1
        assert "weights.safetensors is damaged or cut short" in capsys.readouterr().err
