"""Where an endpoint runs: the section `kubeflow.serving` of a profile."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from toolwise.kubernetes.fields import Cores, ImageName, Memory, Name, Namespace
from toolwise.serving.settings import ServingSettings


class ClusterSettings(BaseModel):
    """Where and on what an endpoint runs on Kubernetes.

    Args:
        namespace: of the InferenceService.
        image: the agent's container image.
        models: `s3://…` prefix that promoted weights are published under, for KServe to fetch.
        service_account: whose credentials fetch model and corpus.
        gpus: per predictor replica.
        cpu, memory: of one predictor replica.
        context_tokens: longest conversation the predictor takes.
        replicas: smallest and largest number of replicas of each part.
        secret: Kubernetes secret with the S3 credentials that fetch the corpus, and with
            `SERPER_API_KEY` where the agent's search asks Serper.
        sandbox: server that runs the model's code (`toolwise.tools.server`); by default the
            profile's, and without one the agent's own pod.
        tracking_uri: MLflow server that takes traces of requests, where `serve.trace_share` sends
            any; by default the profile's.
        keys_secret: Kubernetes secret with the file of API keys that `serve.keys` names.
        runtime_class: RuntimeClass of gVisor, which the agent's pods get where `serve.isolation` is
            `gvisor`.
        ready_seconds: how long the service may take to become ready; an hour is enough for an
            agent that indexes Wikipedia first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: Namespace
    image: ImageName
    models: str = Field(default="s3://toolwise/models", pattern=r"^s3://[^/]+/.+")
    service_account: Name | None = None
    gpus: int = Field(default=1, ge=0)
    cpu: Cores = "8"
    memory: Memory = "48Gi"
    context_tokens: int = Field(default=16384, ge=1)
    replicas: tuple[int, int] = (1, 1)
    secret: Name = "toolwise-storage"
    sandbox: str | None = Field(default=None, pattern=r"^https?://[^/]")
    tracking_uri: str | None = None
    keys_secret: Name | None = None
    runtime_class: Name = "gvisor"
    ready_seconds: int = Field(default=3600, ge=1)


class DeploymentSettings(BaseModel):
    """What the step `deploy` needs to know.

    Args:
        serve: the endpoint.
        cluster: where it runs; a process on this machine without it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    serve: ServingSettings
    cluster: ClusterSettings | None = None
