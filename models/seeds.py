"""Seeds derived from what they are for: no generator state has to survive a kill."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, such as (seed, "rollout", step): the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
