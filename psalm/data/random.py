"""Stateless randomness: every draw is a function of (seed, step, sample) and a stream's name.

Nothing is drawn from a generator that lives longer than one sample, so neither the number of workers or ranks nor a
resumed run changes a draw. Hashing by BLAKE2b keeps keys of neighbouring steps and samples unrelated.
"""

from hashlib import blake2b

import torch

KEY_BITS = 63
"""Keys fit into a signed 64-bit integer, so that a batch carries them as a tensor."""


def draw_key(seed: int, step: int, sample: int) -> int:
    """The key of one sample at one step: 63 bits, the same on every machine."""
    return _hash(f"{seed}/{step}/{sample}")


def generator(key: int, stream: str) -> torch.Generator:
    """A fresh CPU generator for one purpose (``stream``, e.g. "class_order") under a key.

    Streams of one key are independent of each other: drawing more from one changes nothing in another.
    """
    return torch.Generator(device="cpu").manual_seed(_hash(f"{key}/{stream}"))


def _hash(text: str) -> int:
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - KEY_BITS)
