"""Random numbers that do not depend on how images are batched."""

from __future__ import annotations

import torch
from torch import Generator


def per_image_generators(seed: int, n: int, device: torch.device) -> list[Generator]:
    """A generator for each of n images: the i-th is the same whatever n is."""
    seeds = torch.Generator().manual_seed(seed)
    draws = [int(torch.randint(2**62, (), generator=seeds)) for _ in range(n)]
    return [Generator(device).manual_seed(draw) for draw in draws]
