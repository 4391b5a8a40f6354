"""Hostile requests of every kind to every method: none may be an internal error, or go unnamed, or harm the server.

    python tests/fuzz/many.py [--requests 100000] [--loopback 0.1] [--seed 1]

So many requests are shared out over all methods, a part of them over loopback. Prints how often each answered what.
Exits with 1 if any request was answered INTERNAL or UNKNOWN, hung, or with a message that names no field, and if the
server does not answer a good request as before.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.targets import fault, site


@click.command()
@click.option("--requests", default=100_000, show_default=True)
@click.option("--loopback", default=0.1, show_default=True, help="Share of them over loopback.")
@click.option("--seed", default=1, show_default=True)
def main(requests: int, loopback: float, seed: int) -> None:
    logging.disable(logging.CRITICAL)  # what is refused on purpose fills pages
    rng = random.Random(seed)
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    faults: dict[str, None] = {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as here:
        before = here.good()
        outside = round(requests * loopback)
        for targets, count in ((here.inside, requests - outside), (here.outside, outside)):
            for number in range(count):
                target = targets[number % len(targets)]
                started = time.monotonic()
                outcome = target.attack(rng)
                slowest[target.name] = max(slowest[target.name], time.monotonic() - started)
                codes[target.name][outcome.code.name] += 1
                if found := fault(target, outcome):
                    faults[found] = None
        alive = here.models.lanes.alive and here.good() == before
    for name, found in codes.items():
        told = ", ".join(f"{code} {count}" for code, count in found.most_common())
        print(f"{name:75} {found.total():6} {1000 * slowest[name]:6.0f} ms  {told}")
    total: Counter[str] = sum(codes.values(), Counter())
    print(f"\n{total.total()} requests to {len(codes)} methods in {time.monotonic() - begin:.0f} s, seed {seed}")
    print(", ".join(f"{code} {count}" for code, count in total.most_common()))
    print(f"{len(faults)} faults; the server {'answers as before' if alive else 'DOES NOT ANSWER AS BEFORE'}")
    print(*list(faults)[:50], sep="\n")
    sys.exit(0 if alive and not faults else 1)


if __name__ == "__main__":
    main()
