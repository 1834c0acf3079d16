"""How the parallel jobs of a sweep share a machine: its cores, and its GPUs where there are several."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

_held: FileLock | None = None  # for as long as this process lives
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this process as ``CUDA_VISIBLE_DEVICES`` names them; what it was before `take_gpu` set it."""
    found = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:found] if named else map(str, range(found)))


def default_workers() -> int:
    """One per GPU; without any, one per core."""
    return len(visible_gpus()) or cores()


def jobs_here() -> int:
    """How many jobs the launcher runs on this machine at a time; one of a cluster's tasks has its own share of one."""
    jobs = HydraConfig.get().launcher.get("n_jobs", 1) if HydraConfig.initialized() else 1
    return max(1, jobs) if jobs >= 0 else cores()


def threads() -> int:
    """CPU threads of one job: those the cluster gives it or its share of the cores, at most ``OMP_NUM_THREADS``."""
    given = HydraConfig.get().launcher.get("cpus_per_task") if HydraConfig.initialized() else None
    share = given or max(1, cores() // jobs_here())
    most = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, of nested levels
    return min(share, int(most)) if most.isdecimal() and int(most) else share


def keep_freed_memory() -> None:
    """Let tensors take the memory of those before them, instead of fresh pages of the system each time.

    glibc gives large blocks back when they are freed, so every pass through a network had its memory mapped anew
    (`benchmarks/allocator.md`). Where there is no glibc, nothing changes.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def gpu_of(slot: int, gpus: tuple[str, ...]) -> str:
    """The GPU of a worker, counted from 0: round robin.

    >>> [gpu_of(slot, ("0", "1", "3")) for slot in range(4)]
    ['0', '1', '3', '0']
    """
    return gpus[slot % len(gpus)]


def take_slot(folder: Path, slots: int) -> int:
    """The number of this worker: the lowest that no living process of the sweep holds, and its own from now on.

    Unlike a count of the workers started so far, it stays balanced when one of them is replaced.
    """
    global _held
    for slot in range(slots):
        lock = FileLock(folder / f"worker-{slot}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _held = lock
        return slot
    return os.getpid() % slots  # workers that are going overlap with those that replace them


def take_gpu(folder: Path) -> None:
    """Leave this worker of a sweep only its own GPU, if workers share several; before CUDA is initialised."""
    gpus, jobs = visible_gpus(), jobs_here()
    if _held is None and jobs > 1 and len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(take_slot(folder, jobs), gpus)
