"""`python -m bench.hdpo`: run the study, a part of it or more of it, and write docs/hdpo.md."""

from __future__ import annotations

import argparse
import json
import sys

from bench.hdpo.report import write_report
from bench.hdpo.scale import Scale
from bench.hdpo.study import RESULTS, finished, run_study, write_results


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser("python -m bench.hdpo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=Scale().seeds)
    parser.add_argument("--steps", type=int, default=Scale().steps, help="of each arm")
    parser.add_argument("--only", default="", help="regular expression of `regime: arm`")
    parser.add_argument("--full", action="store_true", help="5 seeds of 120 steps")
    parser.add_argument(
        "--so-far", action="store_true", help="train nothing; collect the arms that are done"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing; write the docs from the results file"
    )
    given = parser.parse_args()
    seeds, steps = (5, 120) if given.full else (given.seeds, given.steps)
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
    write_report(results)


if __name__ == "__main__":
    main()
