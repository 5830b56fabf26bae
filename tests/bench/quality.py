"""How good sound still sounds after something was done to it: PESQ, if the package that knows it is there."""

import importlib.util

from media_server.audio.chunk import HEARING_HZ, Pcm

HOW_TO_GET_PESQ = "no PESQ: the package pesq is not installed; pip install -e '.[bench]' builds it with a C compiler"


def has_pesq() -> bool:
    """Return whether `pesq` can give a score."""
    return importlib.util.find_spec("pesq") is not None


def pesq(clean: Pcm, came: Pcm) -> float | None:
    """Return the score of `came` by ITU-T P.862.2, -0.5 to 4.64; None without the package, or where it finds no speech.

    Both are 16 kHz; a constant delay between the two does not matter.
    """
    if not has_pesq():
        return None
    from pesq import NoUtterancesError
    from pesq import pesq as score

    n = min(len(clean), len(came))
    try:
        return float(score(HEARING_HZ, clean[:n], came[:n], "wb"))
    except NoUtterancesError:
        return None
