"""Sizes as a person reads them."""


def gib(size: int) -> str:
    """Bytes in GiB, or in MiB where that is less than one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
