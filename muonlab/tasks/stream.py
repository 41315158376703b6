"""Random numbers without state: any slice of a stream, the same on every machine."""

import numpy as np

__all__ = ["counter_hash"]


def counter_hash(seed: int, start: int, count: int) -> np.ndarray:
    """Random uint64 number i of the stream `seed`, for i in start ... start + count - 1: no state, any slice.

    >>> counter_hash(0, 5, 3).tolist() == counter_hash(0, 0, 8)[5:].tolist()
    True

    Source   Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64)
    Differs  from SplitMix64: the seed is mixed once before it starts the stream
    """
    origin = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return _mix(origin + counter * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
