"""`python -m tests.manifests`: the chart is linted, and all that it renders to is checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.manifests.chart import OUTSIDE, VALUES, lint, render, values
from tests.manifests.manifests import check


def faults() -> Iterator[str]:
    """Everything that is wrong, with the values file it shows with."""
    for name in VALUES:
        given = values(name)
        wrong = lint(given) or check(render(given), OUTSIDE)
        yield from (f"charts/toolwise/{name}.yaml: {fault}" for fault in wrong)


if __name__ == "__main__":
    found = [*faults()]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)
