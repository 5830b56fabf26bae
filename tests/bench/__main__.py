"""`python -m tests.bench [NAME ...]`: runs the benchmarks that are named, or all but the long ones."""

import argparse
import asyncio
import sys

from tests.bench import barge_in, codec, connection, load, loss, orders, recogniser, soak, voice_to_voice

BENCHMARKS = {
    "connection": connection.run,
    "voice_to_voice": voice_to_voice.run,
    "barge_in": barge_in.run,
    "recogniser": recogniser.run,
    "orders": orders.run,
    "loss": loss.run,
    "codec": codec.run,
    "load": load.run,
    "soak": soak.run,
}

LONG = {"soak"}
"""Run only when they are asked for."""


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all but soak")
    names = parser.parse_args().names or [name for name in BENCHMARKS if name not in LONG]
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        asyncio.run(BENCHMARKS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
