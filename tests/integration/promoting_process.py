"""A pipeline that promotes, for tests: told when to judge and when to record, by lines on stdin.

Arguments: tracking URI, name of the registered model, source of its checkpoints. For each run id it
reads, it registers a version and notes the standing, answers `judged`, waits for a line, records a
promotion, and answers with the decision as it stands, as JSON.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout

from toolwise.promotion.gate import Decision
from toolwise.promotion.policy import GatePolicy
from toolwise.promotion.registry import Registry
from toolwise.tracking import Connection

PROMOTE = Decision(decision="promote", reference="baseline", policy=GatePolicy(), criteria=())


def main(uri: str, name: str, source: str) -> None:
    registry = Registry(name, Connection(uri))
    for line in sys.stdin:
        # MLflow prints where runs can be seen.
        with redirect_stdout(sys.stderr):
            version = registry.register(line.strip(), source)
            standing = registry.standing()
        print("judged", flush=True)
        sys.stdin.readline()
        with redirect_stdout(sys.stderr):
            decision = registry.record(version, PROMOTE, standing)
        answer = {"version": version, "decision": decision.decision, "reasons": decision.reasons}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
