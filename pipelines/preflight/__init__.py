"""Before anything is submitted: whether the cluster has what a profile needs."""

from pipelines.preflight.checks import Checks
from pipelines.preflight.cluster import Cluster, Unreachable
from pipelines.preflight.finding import Finding, print_findings
from toolwise.profile import Profile

__all__ = ["Finding", "Unreachable", "check", "print_findings"]


def check(profile: Profile) -> list[Finding]:
    """What the cluster has of what `profile` needs.

    Raises:
        Unreachable: there is no cluster to ask.
    """
    return list(Checks(Cluster(), profile).all())
