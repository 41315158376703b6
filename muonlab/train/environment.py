"""What a run ran on: recorded beside its result, never part of its key."""

import os
import platform
import resource
import sys
from functools import lru_cache
from typing import Any

import torch

import muonlab

__all__ = ["environment", "peak_bytes"]


@lru_cache
def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str, num_ranks: int = 1, parallel: str = "") -> dict[str, Any]:
    """Machine, versions, threads and ranks. `machine` is equal for runs whose times may be compared."""
    hardware = torch.cuda.get_device_name() if device == "cuda" else _cpu_model()
    spread = {"ranks": num_ranks, "parallel": parallel} if num_ranks > 1 else {}
    return {
        "machine": f"{hardware}, {os.cpu_count()} cores" + (f", {num_ranks} ranks by {parallel}" if spread else ""),
        **spread,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "muonlab": muonlab.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def peak_bytes(device: str) -> int:
    """High-water mark of the device's memory, or of this process on a CPU."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
