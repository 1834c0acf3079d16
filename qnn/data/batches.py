"""Batches from tensors in memory or mapped into it, shuffled and augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from qnn.data.images import Split


class Batches:
    """Iterate over (images float32 in [0, 1], labels), on `device`.

    The order and the augmentation of epoch e depend on (seed, e) alone, so a training that resumes at
    epoch e sees exactly what an undisturbed one sees. A split in memory is moved to `device` as a whole, one on
    disk a batch at a time.

    Args:
        shuffle: reshuffle each epoch.
        crop: pad by this many zero pixels and crop back at a random place; 0 for none.
        flip: flip each image left to right with probability ½.
        steps: batches per epoch; whole passes are chained to reach it. None: one pass.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        crop: int = 0,
        flip: bool = False,
        steps: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = split.images if split.on_disk else split.images.to(device)
        self.labels = split.labels.to(self.images.device)
        self.device = device
        self.batch_size, self.shuffle, self.crop, self.flip, self.seed = batch_size, shuffle, crop, flip, seed
        self.steps = steps or -(-len(split) // batch_size)
        self.epoch = 0

    batch_sampler = None

    @property
    def sampler(self) -> Batches:
        """Where Lightning looks for `set_epoch` (and it expects a `batch_sampler` beside it)."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        step = 0
        while step < self.steps:
            for indices in self._order(generator).split(self.batch_size):
                if step == self.steps:
                    return
                step += 1
                indices = indices.to(self.images.device)
                images, labels = self.images[indices].to(self.device), self.labels[indices].to(self.device)
                yield self._augmented(images, generator).float().div_(255), labels

    def _order(self, generator: torch.Generator) -> Tensor:
        count = len(self.labels)
        return torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.crop and not self.flip:
            return images
        count, _, height, width = images.shape
        top, left = torch.randint(0, 2 * self.crop + 1, (2, count, 1), generator=generator)
        mirrored = torch.rand(count, 1, generator=generator) < (0.5 if self.flip else 0)
        rows = top + torch.arange(height)
        columns = left + torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width))
        rows, columns = rows.to(images.device), columns.to(images.device)
        channels = torch.arange(images.shape[1], device=images.device)
        which = torch.arange(count, device=images.device)
        return F.pad(images, (self.crop,) * 4)[
            which[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]
        ]
