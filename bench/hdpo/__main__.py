"""`python -m bench.hdpo`: run the study, a part of it or more of it, and write docs/hdpo.md.

The results hold every finished arm of the study's size, whichever were asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from bench.hdpo import headline
from bench.hdpo.report import write_report
from bench.hdpo.scale import Scale
from bench.hdpo.study import RESULTS, finished, run_study, write_results
from bench.recording import record


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser("python -m bench.hdpo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=Scale().seeds)
    parser.add_argument("--steps", type=int, default=Scale().steps, help="of each arm")
    parser.add_argument(
        "--only", default="", help="train those arms whose `regime: arm` matches this expression"
    )
    parser.add_argument("--full", action="store_true", help="5 seeds of 120 steps")
    parser.add_argument(
        "--so-far", action="store_true", help="train nothing; collect the arms that are done"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing; write the docs from the results file"
    )
    given = parser.parse_args()
    seeds, steps = (5, 120) if given.full else (given.seeds, given.steps)
    started = time.perf_counter()
    scale = Scale(seeds=seeds, steps=steps, only=given.only)
    if given.report:
        if not RESULTS.exists():
            sys.exit(f"{RESULTS} is missing: run the study first")
        results = json.loads(RESULTS.read_text())
    elif given.so_far:
        results = finished(scale)
        write_results(results)
    else:
        results = run_study(scale)
    trained = not (given.report or given.so_far)
    write_report(results)
    record("hdpo", headline(results), time.perf_counter() - started if trained else None)


if __name__ == "__main__":
    main()
