"""Whole-number arithmetic for launch grids: Triton's own is a traced function, 6 us a call on the host."""


def cdiv(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()
