"""Randomness without hidden state.

Every draw is a pure function of the run's seed, of what the draw is for, and of whole numbers that
say which one it is (epoch and image, step and rank, candidate). Nothing is read from or left in the
global generators, so a run can stop between any two draws and resume, and the number of loader
workers changes nothing.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *coordinates: int) -> int:
    """A 63-bit seed that depends on every argument; equal arguments give equal seeds."""
    text = ":".join([purpose, str(seed), *map(str, coordinates)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, purpose: str, *coordinates: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one draw; see the module's text for what the arguments are.

    Devices of one kind draw the same numbers, those of another kind others.
    """
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, *coordinates))


def numpy_generator(seed: int, purpose: str, *coordinates: int) -> np.random.Generator:
    """The same for numpy, which has draws that torch lacks."""
    return np.random.default_rng(derived_seed(seed, purpose, *coordinates))


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators for a library that draws from them, and restore them after.

    timm's image transforms draw from the global generators of Python, numpy and torch, dropout
    layers from torch's, on the device where they run.
    """
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
