"""Deliver results that are kept on disk: ``python -m pipelines.sync``.

Every sweep does this too, at its beginning and at its end.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.delivery import deliver_all
from pipelines.progress import say
from pipelines.sweep import settle


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.sync", description="Deliver results kept on disk.")
    parser.add_argument("--work", type=Path, default=Path("outputs"), help="the working folder of the sweeps")
    parser.add_argument("--to", metavar="URI", help="a tracking store, where it has another address now")
    chosen = parser.parse_args()
    work = chosen.work.absolute()
    if not work.is_dir():
        print(f"error: {chosen.work} is no folder: name the sweeps' with --work", file=sys.stderr)
        return 1
    delivered, left = deliver_all(work, chosen.to)
    settle(work, delivered)
    say(f"{len(delivered)} results delivered, {len(left)} still kept in {work / 'results'}")
    for name, reason in left.items():
        say(f"  {name}: {reason}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
