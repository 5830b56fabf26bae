"""`python -m tests.fuzz --packets 1000000 --seed 0`: see `run.py`. The exit status is 1 if something was found."""

import argparse
import asyncio
import sys

from tests.fuzz.run import SHARES, Fuzz, keep, show


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--packets", type=int, default=100_000, metavar="N", help="of all kinds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that happens by chance (default: %(default)s)")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="put this one packet into a fresh call")
    args = parser.parse_args()
    fuzz = Fuzz(args.seed)
    leaks: list[str] = []
    if args.only:
        kind, _, number = args.only.partition(":")
        if kind not in SHARES or not number.isdecimal():
            parser.error(f"--only {args.only}: wanted one of {', '.join(SHARES)}, a colon and a number")
        asyncio.run(fuzz.replay([(kind, fuzz.packet(kind, int(number)))]))
    else:
        leaks = asyncio.run(fuzz.run(args.packets))
    show(fuzz, leaks)
    for finding in fuzz.findings.values():
        keep(finding)
    return 1 if fuzz.findings or leaks else 0


if __name__ == "__main__":
    sys.exit(main())
