"""Deploy an InferenceService: apply, wait, try, and put the one before back where that fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from toolwise.errors import BackendError, ToolwiseError
from toolwise.serving.cluster import ClusterSettings
from toolwise.serving.deploy import Endpoint
from toolwise.serving.inference_service import inference_service
from toolwise.serving.kubernetes_api import InferenceServices, Object, applied_fields
from toolwise.serving.settings import ServingSettings
from toolwise.storage import content_digest, publish

POLL_SECONDS = 2.0
UNCHANGED_SECONDS = 60.0
"""How long an update may leave the status as it was before that is taken for its own."""

_NOT_OF_PODS = ("minReplicas", "maxReplicas", "timeout")
"""What a manifest says of a component that stands in no pod's template."""

Told = Callable[[str], None]
"""Hears what is going on, at every look why the service is not ready yet."""


class _Overtaken(BackendError):
    """Somebody else has deployed meanwhile: what stands is not this deployment's to try or undo."""


def deploy_checkpoint(
    model: Path,
    corpus: Path,
    serving: ServingSettings,
    cluster: ClusterSettings,
    attempt: Callable[[Endpoint], None],
    told: Told,
    still_wanted: Callable[[], None] = lambda: None,
) -> Endpoint:
    """Publish a checkpoint for KServe to fetch, and deploy the agent in front of it.

    Args:
        model: the weights.
        corpus: what `text_search` searches; an empty file leaves that tool out.
        serving: the endpoint.
        cluster: where it runs.
        attempt: see `deploy_on_cluster`, as for what is raised.
        told: hears what it waits for.
        still_wanted: asked once the weights are published; what it raises ends the deployment
            before anything has changed.
    """
    services = InferenceServices(cluster.namespace)
    told(f"publishing the weights under {cluster.models}")
    model_uri = _published(model, f"{cluster.models}/{serving.name}", "")
    corpus_uri = None
    if corpus.stat().st_size > 0:
        corpus_uri = _published(corpus, f"{cluster.models}/corpora", ".jsonl")
    manifest = inference_service(serving, cluster, model_uri, corpus_uri)
    still_wanted()
    return deploy_on_cluster(
        manifest, services, attempt, ready_seconds=cluster.ready_seconds, told=told
    )


def _published(path: Path, prefix: str, ending: str) -> str:
    """The address it is published at, which is its content's own."""
    uri = f"{prefix}/{content_digest(path)[:16]}{ending}"
    publish(path, uri)
    return uri


def deploy_on_cluster(
    manifest: Object,
    services: InferenceServices,
    attempt: Callable[[Endpoint], None],
    *,
    ready_seconds: float,
    told: Told | None = None,
) -> Endpoint:
    """Put an InferenceService in place, and the one before back where it does not work.

    A manifest whose attempt passes is recorded in the cluster; that one is put back, whatever a
    deployment that was killed has left behind. Without a record it is what was there before.

    Where somebody else deploys meanwhile, theirs stays: this deployment fails, records nothing and
    puts nothing back.

    Args:
        manifest: what to apply.
        services: where.
        attempt: tries the endpoint once it is ready; what it raises undoes the deployment.
        ready_seconds: how long the service may take to become ready.
        told: hears what it waits for.

    Returns:
        The endpoint, at the URL that the gateway serves.

    Raises:
        InputError: the manifest is refused, or fields of it belong to somebody else; nothing has
            changed.
        BackendError: the service did not become ready, or the attempt failed; says why, and that
            the one before is back. Or somebody else has deployed meanwhile.
    """
    name = manifest["metadata"]["name"]
    told = told or (lambda _: None)
    # Asked before anything changes, also lest the account may not.
    before, _ = services.get(name), services.proven(name)
    stale = _stamp(before, services.deployments(name))
    after = services.apply(manifest)
    try:
        ready = _wait(
            services,
            after,
            stale if _differ(before, after) else None,
            ready_seconds,
            told,
            new_pods=_new_pods(before, after),
        )
        attempt(Endpoint(f"{_address(ready)}/openai/v1", name))
        _found(services, after)  # lest somebody else's pods have given the answers
    except _Overtaken:
        raise
    except Exception as error:
        undone = _put_back(services, before, after, ready_seconds, told)
        raise BackendError(f"InferenceService {name} does not work: {error}\n{undone}") from error
    services.record_proven(manifest)
    return Endpoint(f"{_url(ready)}/openai/v1", name)


def _found(services: InferenceServices, applied: Object) -> Object:
    """The object as it is now; raises `BackendError` where it is no longer what was applied."""
    name = applied["metadata"]["name"]
    found = services.get(name)
    if found is None:
        raise BackendError(f"it was deleted from namespace {services.namespace} meanwhile")
    if _revision(found) != _revision(applied):
        raise _Overtaken(
            f"somebody else has deployed InferenceService {name} meanwhile; theirs stays as it is"
        )
    return found


def _wait(
    services: InferenceServices,
    applied: Object,
    stale: Any,
    ready_seconds: float,
    told: Told,
    *,
    new_pods: bool = False,
) -> Object:
    """The object once it is ready.

    Args:
        services: where it is.
        applied: the object as the apply has left it.
        stale: `_stamp` of the status before an update; None where there was none.
        ready_seconds: how long to wait.
        told: hears what for.
        new_pods: the update has to change the pods' templates, where there are Deployments.
    """
    name, started = applied["metadata"]["name"], monotonic()
    while True:
        found = _found(services, applied)
        waited = monotonic() - started
        why = _why_not_ready(found)
        if why is None:
            deployments = services.deployments(name)
            # KServe has no reliable mark of which generation a status is of (its
            # `observedGeneration` is a child's, kserve/kserve#6081), so a ready one has to move.
            unmoved = stale is not None and _stamp(found, deployments) == stale
            if unmoved and (waited < UNCHANGED_SECONDS or (new_pods and deployments)):
                why = "KServe has not taken up the change yet"
            else:
                why = _why_not_rolled_out(deployments)
        if why is None:
            return found
        told(why)
        if _is_refused(found):
            raise BackendError(f"KServe refuses it: {why}")
        if waited >= ready_seconds:
            raise BackendError(f"it was not ready within {ready_seconds:.0f} s: {why}")
        sleep(POLL_SECONDS)


def _put_back(
    services: InferenceServices,
    before: Object | None,
    applied: Object,
    ready_seconds: float,
    told: Told,
) -> str:
    """Undo a deployment; says in words how that went."""
    name = applied["metadata"]["name"]
    try:
        failed = services.get(name)
        if failed is not None and _revision(failed) != _revision(applied):
            return "Somebody else has deployed meanwhile: nothing is undone."
        if before is None:
            services.delete(name)
            return "There was none before it; it has been deleted."
        # Asked now: the deployment before may have finished after this one had begun.
        proven = services.proven(name)
        manifest = proven or applied_fields(before)
        if manifest is None:
            return (
                "The one before was not deployed by Toolwise and cannot be put back: what this "
                "deployment has set stands."
            )
        stale = _stamp(failed, services.deployments(name))
        restored = services.apply(manifest)
        told("putting the previous revision back")
        _wait(services, restored, stale, ready_seconds, told)
    except ToolwiseError as error:
        return f"Putting the previous revision back failed as well: {error}"
    unknown = "" if proven else " No deployment of it is known to have passed its questions."
    return f"The previous revision is back and ready.{unknown}"


def _conditions(found: Object) -> dict[str, Object]:
    return {c["type"]: c for c in found.get("status", {}).get("conditions", [])}


def _why_not_ready(found: Object) -> str | None:
    """In words; None where it is ready."""
    conditions = _conditions(found)
    failure = found.get("status", {}).get("modelStatus", {}).get("lastFailureInfo", {})
    ready = conditions.get("Ready", {}).get("status")
    if ready == "True" and _url(found):
        return None
    waiting = [
        " ".join(filter(None, (f"{kind}: {c.get('reason', '')}", c.get("message"))))
        for kind, c in conditions.items()
        if c["status"] != "True" and kind not in ("Ready", "Stopped")
    ]
    if failure:
        waiting.insert(0, f"{failure.get('reason', 'failure')}: {failure.get('message', '')}")
    return "; ".join(waiting) or "KServe has not said anything yet"


def _why_not_rolled_out(deployments: dict[str, Object]) -> str | None:
    """In words; None where every pod is new and available, as `kubectl rollout status` has it.

    A Deployment is ready throughout a rolling update, by its old pods; so is the InferenceService.
    """
    waiting = []
    for part, deployment in deployments.items():
        status = deployment.get("status", {})
        wanted = deployment["spec"].get("replicas", 1)
        pods, new, available = (
            status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")
        )
        if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
            waiting.append(f"{part}: Kubernetes has not taken up the change yet")
        elif new < wanted or pods > new or available < new:
            old = pods - new
            said = f"{part}: {max(0, available - old)} of {wanted} new pods available"
            said += f", {old} old ones still there" if old else ""
            waiting.append("".join((said, *_troubles(deployment))))
    return "; ".join(waiting) or None


def _troubles(deployment: Object) -> Iterator[str]:
    """What keeps a rollout from going on, where Kubernetes says so."""
    for kind, condition in _conditions(deployment).items():
        if (kind, condition["status"]) in (("Progressing", "False"), ("ReplicaFailure", "True")):
            yield f" ({condition.get('reason', kind)}: {condition.get('message', '')})"


def _is_refused(found: Object) -> bool:
    """Whether KServe says that waiting is in vain."""
    status = found.get("status", {}).get("modelStatus", {})
    return status.get("transitionStatus") == "InvalidSpec"


def _stamp(found: Object | None, deployments: dict[str, Object]) -> Any:
    """What changes when KServe takes up a change of the spec: of the status, or of Deployments."""
    if found is None or "status" not in found:
        return None
    if deployments:
        return {part: one["spec"]["template"] for part, one in deployments.items()}
    ready = _conditions(found).get("Ready", {})
    created = {
        part: status.get("latestCreatedRevision")
        for part, status in found["status"].get("components", {}).items()
    }
    return ready.get("lastTransitionTime"), created


def _revision(found: Object) -> Any:
    """What every change of the spec changes, and nothing else.

    KServe writes status and finalizers alone. An annotation of ours would not do: KServe copies
    those to the pods, so that each deployment would replace them.
    """
    return found["metadata"]["uid"], found["metadata"]["generation"]


def _differ(before: Object | None, after: Object) -> bool:
    """Whether an apply has changed the spec."""
    return before is None or _revision(before) != _revision(after)


def _new_pods(before: Object | None, after: Object) -> bool:
    """Whether an update is of the pods, rather than of their number or the way to them."""
    if before is None:
        return False
    pods = [
        {
            part: {name: value for name, value in content.items() if name not in _NOT_OF_PODS}
            for part, content in found["spec"].items()
        }
        for found in (before, after)
    ]
    return pods[0] != pods[1]


def _url(found: Object) -> str:
    return str(found.get("status", {}).get("url", "")).rstrip("/")


def _address(found: Object) -> str:
    """Where the endpoint is asked from here.

    Inside a pod that is the Service's name: the gateway's domain may have no DNS record there.
    """
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    address = found["status"].get("address", {}).get("url") if inside else None
    return str(address).rstrip("/") if address else _url(found)
