"""Numbers that start over: RTP's sequence numbers and timestamps (RFC 3550 section 5.1), and others of their width."""

SEQUENCES = 1 << 16
TIMESTAMPS = 1 << 32


def signed(difference: int, modulo: int) -> int:
    """Return the difference of two such numbers by the shorter way: from -modulo / 2 up to, and without, modulo / 2."""
    half = modulo // 2
    return (difference + half) % modulo - half
