"""Training a classifier with Lightning: the module, and one function that runs it."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torchmetrics.classification import MulticlassAccuracy

from qnn.data import Batches, ImageData
from qnn.evaluation import EVALUATION_BATCH
from qnn.recipes import CrossEntropy, Recipe, Step
from qnn.switchable import set_width, widths_of

CHECKPOINTS = ("best.ckpt", "last.ckpt")


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


class Classifier(pl.LightningModule):
    """Training of a network by an objective; logs train and validation loss and accuracy per epoch.

    A switchable network is validated at every width that is trained: loss and accuracy are means over them.
    """

    def __init__(
        self, net: nn.Module, recipe: Recipe, classes: int, seed: int, objective: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.net, self.recipe, self.seed = net, recipe, seed
        self.objective = CrossEntropy() if objective is None else objective
        self.forward_net = net
        self.validated_widths = getattr(objective, "trained_widths", ()) or widths_of(net)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")

    def on_train_epoch_start(self) -> None:
        # dropout of epoch e depends on (seed, e) alone, so a resumed training repeats an undisturbed one
        torch.manual_seed(1_000_003 * self.seed + self.current_epoch)
        self.log("learning_rate", self._learning_rate())

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        step = Step(self.current_epoch, self.recipe.epochs, number)
        figures = self.objective(self.forward_net, images, labels, step)
        self.train_accuracy(figures.pop("logits"), labels)
        for name, value in figures.items():
            self.log(f"train_{name}", value, on_step=False, on_epoch=True)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return figures["loss"]

    def on_train_epoch_end(self) -> None:
        for name, what in (("train_loss", "training"), ("val_loss", "validation")):
            loss = self.trainer.callback_metrics[name]
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"the {what} loss is {loss.item()} after epoch {self.current_epoch + 1}")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            # here and not by Lightning, which steps it after the checkpoint is written: a resumed
            # training would lose that step
            scheduler.step(self.trainer.callback_metrics["val_loss"])
        self.trainer.should_stop |= self._learning_rate() < self.recipe.stop_below_lr

    def _learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        losses = []
        for width in self.validated_widths or (None,):
            if width is not None:
                set_width(self.net, width)
            logits = self.forward_net(images)
            losses.append(F.cross_entropy(logits, labels))
            self.val_accuracy(logits, labels)
            if width is not None:
                self.log(f"val_accuracy.{width}", (logits.argmax(1) == labels).float().mean())
        self.log("val_loss", torch.stack(losses).mean(), prog_bar=True)
        self.log("val_accuracy", self.val_accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer(_parameter_groups(self.net, self.recipe))
        if self.recipe.scheduler is None:
            return optimizer
        steps = {"total_steps": self.trainer.estimated_stepping_batches}
        per_step = self.recipe.scheduler_interval == "step"
        try:
            scheduler = self.recipe.scheduler(optimizer, **(steps if per_step else {}))
        except ZeroDivisionError as error:  # OneCycleLR's, where a phase of it has no steps
            few = f"{steps['total_steps']} steps are too few for the learning rate schedule"
            raise ValueError(f"{few}: train for more epochs, or more steps per epoch") from error
        wiring = {"scheduler": scheduler, "interval": self.recipe.scheduler_interval, "monitor": "val_loss"}
        if isinstance(scheduler, ReduceLROnPlateau):
            wiring["frequency"] = sys.maxsize  # never by Lightning, see on_train_epoch_end
        return {"optimizer": optimizer, "lr_scheduler": wiring}


def _parameter_groups(net: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (decayed if recipe.weight_decay and re.fullmatch(recipe.decayed, name) else others).append(parameter)
    if recipe.weight_decay and not decayed:
        raise ValueError(f"weight_decay is set but no parameter name matches decayed={recipe.decayed}")
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def piecewise_constant(optimizer: Optimizer, *, after: Sequence[int], rates: Sequence[float]) -> LambdaLR:
    """The learning rate `rates[i]` after `after[i]` finished epochs; the optimiser's own before the first."""
    initial = optimizer.param_groups[0]["lr"]

    def factor(epoch: int) -> float:
        reached = [rate for limit, rate in zip(after, rates, strict=True) if epoch >= limit]
        return reached[-1] / initial if reached else 1.0

    return LambdaLR(optimizer, factor)


def train(
    net: nn.Module,
    data: ImageData,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    objective: nn.Module | None = None,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
    accelerator: str = "auto",
    channels_last: bool = False,
    compile_net: bool = False,
    progress: bool = False,
) -> nn.Module:
    """Train `net` and return it with the weights of the epoch with the lowest validation loss.

    The same seed on the same machine with the same number of threads gives bit-identical weights.
    Checkpoints go to `folder`; if it holds the last epoch of an interrupted training, that training
    goes on from there (see `set_aside_damaged`).

    Args:
        objective: what is minimised, see `CrossEntropy`, which None stands for.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
        KeyboardInterrupt: as ever, where Lightning would end the process.
    """
    best, last = (folder / name for name in CHECKPOINTS)
    kept: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    checkpoints = [
        ModelCheckpoint(folder, filename=best.stem, monitor="val_loss", **kept),
        ModelCheckpoint(folder, filename=last.stem, **kept),
    ]
    trainer = pl.Trainer(
        max_epochs=recipe.epochs,
        accelerator=accelerator,
        devices=1,
        precision=recipe.precision,
        logger=logger if logger is not None else False,
        callbacks=[*checkpoints, *callbacks],
        deterministic="warn",
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    # Lightning makes PyTorch deterministic, which also fills all new memory: a sixteenth of a ResNet's step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = Classifier(net, recipe, len(data.class_names), seed, objective)
    if compile_net:
        module.forward_net = cast(nn.Module, torch.compile(net))
    batches = Batches(
        data.train,
        recipe.batch_size,
        shuffle=True,
        crop=recipe.crop,
        flip=recipe.flip,
        steps=recipe.steps_per_epoch,
        seed=seed,
        device=device,
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            batches,
            Batches(data.validation, EVALUATION_BATCH, device=device),
            ckpt_path=str(last) if last.is_file() else None,
            weights_only=True,
        )
    except SystemExit:
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning has switched it off
        raise KeyboardInterrupt from None
    state = torch.load(best, weights_only=True, map_location="cpu")["state_dict"]
    net.load_state_dict({name.removeprefix("net."): t for name, t in state.items() if name.startswith("net.")})
    net = net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return net.cpu().eval()


def set_aside_damaged(folder: Path) -> Path | None:
    """Rename what an interrupted training left if a checkpoint of it was cut short, or is none; returns the culprit.

    A training needs both its checkpoints to go on. They are read without running anything in them.
    """
    for name in CHECKPOINTS:
        try:
            torch.load(folder / name, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            continue
        except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError):
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            return aside / name
    return None
