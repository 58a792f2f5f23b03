"""The checks of manifests: nothing to say of good ones, and each fault that is planted is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests.manifests import Document, check, read
from toolwise.serving.inference_service import inference_service
from toolwise.serving.settings import ServingSettings

GOOD = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {settings.yml: "a: 1"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: abc}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: web
          image: example.com:5000/web:1.2
          env:
            - name: API_TOKEN
              valueFrom: {secretKeyRef: {name: keys, key: token}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}}
          resources:
            requests: {cpu: 100m, memory: 64Mi}
            limits: {cpu: "1", memory: 64Mi}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts: [{name: settings, mountPath: /etc/web}]
      volumes:
        - name: settings
          configMap: {name: settings, items: [{key: settings.yml, path: settings.yml}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  endpoints: [{port: http}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: web}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: web}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: web}
subjects: [{kind: ServiceAccount, name: web}]
"""


def the(kind: str, documents: list[Document]) -> Document:
    [found] = [document for document in documents if document["kind"] == kind]
    return found


def pod(documents: list[Document]) -> Document:
    return the("Deployment", documents)["spec"]["template"]["spec"]


def container(documents: list[Document]) -> Document:
    return pod(documents)["containers"][0]


IMAGES = {"Image/example.com:5000/web:1.2"}
"""Of a program that the checks know nothing of."""


def test_good_manifests_have_no_faults() -> None:
    assert check(read(GOOD), IMAGES) == []


Plant = Callable[[list[Document]], Any]


def found_in(plant: Plant) -> list[str]:
    documents = read(GOOD)
    plant(documents)
    return check(documents, IMAGES)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda d: the("Service", d)["spec"].update(selectr={}), "'selectr' was unexpected"),
        (lambda d: pod(d).update(serviceAcountName="web"), "'serviceAcountName' was unexpected"),
        (lambda d: the("Service", d).update(apiVersion="v2"), "Couldn't find schema for kind"),
        (lambda d: the("ServiceMonitor", d)["spec"].update(endpoint=[]), "'endpoint' was"),
        (lambda d: d.append(copy.deepcopy(the("Service", d))), "Service web: is there 2 times"),
        (lambda d: the("Role", d)["rules"][0].update(verbs=["*"]), "a rule with `*`"),
        (lambda d: the("Role", d)["rules"][0].update(verbs=["lst"]), "nobody knows lst"),
        (lambda d: the("Role", d)["rules"][0].update(resources=["pod"]), "nobody knows pod"),
        (
            lambda d: the("ServiceAccount", d).update(secrets=[{"name": "nope"}]),
            "there is no Secret nope",
        ),
        (
            lambda d: the("ServiceAccount", d).update(imagePullSecrets=[{"name": "nope"}]),
            "there is no Secret nope",
        ),
        (
            lambda d: the("ConfigMap", d)["data"].update(password="hunter2"),
            "data.password: password is a secret",
        ),
        (
            lambda d: the("ConfigMap", d)["data"].update({"settings.yml": "db:\n  password: x1\n"}),
            "data.settings.yml: password is a secret",
        ),
        (
            lambda d: the("ConfigMap", d)["data"].update({"settings.yml": "db: pg://u:pw@h/d"}),
            "data.settings.yml holds a password",
        ),
        (lambda d: the("Service", d)["metadata"]["labels"].update(ap="web"), "nobody reads ap"),
    ],
)
def test_a_wrong_shape_is_found(plant: Plant, fault: str) -> None:
    assert any(fault in found for found in found_in(plant))


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda c: c.update(image="web:latest"), "is `latest`"),
        (lambda c: c.update(image="example.com:5000/web"), "has no tag"),
        (lambda c: c["securityContext"].update(runAsUser=0), "runAsUser is 0"),
        (lambda c: c["securityContext"].update(runAsNonRoot=False), "runAsNonRoot is not true"),
        (lambda c: c["securityContext"].update(privileged=True), "privileged is not allowed"),
        (lambda c: c["securityContext"].update(procMount="Unmasked"), "procMount Unmasked"),
        (lambda c: c["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilegeEscal"),
        (lambda c: c["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
        (lambda c: c["securityContext"].pop("capabilities"), "does not drop ALL"),
        (lambda c: c["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "SYS_ADMIN"),
        (
            lambda c: c["securityContext"].update(seccompProfile={"type": "Unconfined"}),
            "seccompProfile is not RuntimeDefault",
        ),
        (lambda c: c["ports"][0].update(hostPort=80), "hostPort 80"),
        (lambda c: c["resources"].pop("limits"), "resources.limits has no memory"),
        (lambda c: c["resources"]["requests"].pop("cpu"), "resources.requests has no cpu"),
        (lambda c: c["env"].append({"name": "DB_PASSWORD", "value": "x"}), "DB_PASSWORD is a lit"),
        (
            lambda c: c["env"].append({"name": "DB_PASSWORD", "value": "/9dk2Lq+secret=="}),
            "DB_PASSWORD is a literal",
        ),
        (lambda c: c["env"].append({"name": "PGPASS", "value": "hunter2"}), "PGPASS is a literal"),
        (
            lambda c: c["env"].append({"name": "OPENAI_APIKEY", "value": "sk-abc"}),
            "OPENAI_APIKEY is a literal",
        ),
        (lambda c: c.update(args=["--password=hunter2"]), "--password is a literal"),
        (lambda c: c.update(args=["--api-key", "sk-abc"]), "--api-key is a literal"),
        (
            lambda c: c["resources"]["limits"].update(cpu="50m"),
            "the limit of cpu is less than what is requested",
        ),
        (lambda c: c["resources"]["limits"].update({"nvidia.com/gpus": "1"}), "nvidia.com/gpus"),
        (lambda c: c.update(imagePullPolicy="IfNotPresnt"), "nobody knows IfNotPresnt"),
        (lambda c: c.update(args=["$(API_TOKN)"]), "there is no variable API_TOKN"),
        (lambda c: c.update(args=["--url=http://wob:80"]), "there is no Service wob"),
        (lambda c: c.update(args=["--url=http://web:81"]), "Service web has no port 81"),
        (lambda c: c.update(image="example.com/else:1"), "nobody knows its program"),
        (lambda c: c["env"].append({"name": "DB", "value": "pg://u:pw@h/d"}), "DB holds a passw"),
        (lambda c: c.update(args=["--store=pg://u:pw@h/d"]), "an argument holds a password"),
        (lambda c: c.pop("readinessProbe"), "there is no readinessProbe"),
        (lambda c: c["readinessProbe"]["httpGet"].update(port="htp"), "asks port htp"),
        (
            lambda c: c["env"][0]["valueFrom"]["secretKeyRef"].update(key="tokn"),
            "Secret keys has no key tokn",
        ),
        (
            lambda c: c["env"][0]["valueFrom"]["secretKeyRef"].update(name="kys"),
            "there is no Secret kys",
        ),
        (lambda c: c.update(envFrom=[{"configMapRef": {"name": "x"}}]), "there is no ConfigMap x"),
        (lambda c: c["volumeMounts"][0].update(name="x"), "there is no volume x"),
    ],
)
def test_a_container_that_breaks_a_rule_is_found(plant: Plant, fault: str) -> None:
    found = found_in(lambda documents: plant(container(documents)))
    assert any(line.startswith("Deployment web: ") and fault in line for line in found)


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda p: p.update(hostNetwork=True), "hostNetwork is not allowed"),
        (lambda p: p["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "hostPath"),
        (
            lambda p: p["securityContext"].update(sysctls=[{"name": "net.core.x", "value": "1"}]),
            "sysctls are not allowed",
        ),
        (lambda p: p.update(serviceAccountName="wob"), "there is no ServiceAccount wob"),
        (lambda p: p.update(runtimeClassName="runsc"), "there is no RuntimeClass runsc"),
        (lambda p: p.update(tolerations=[{"key": "nvidia.com/gpus"}]), "nobody knows nvidia"),
        (
            lambda p: p.update(
                topologySpreadConstraints=[
                    {
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app": "wob"}},
                    }
                ]
            ),
            "does not select the pod itself",
        ),
        (lambda p: p.update(imagePullSecrets=[{"name": "x"}]), "there is no Secret x"),
        (lambda p: p["volumes"][0]["configMap"].update(name="x"), "there is no ConfigMap x"),
        (
            lambda p: p["volumes"][0]["configMap"]["items"][0].update(key="x"),
            "ConfigMap settings has no key x",
        ),
        (
            lambda p: p["volumes"].append(
                {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}
            ),
            "there is no PersistentVolumeClaim data",
        ),
    ],
)
def test_a_pod_that_breaks_a_rule_is_found(plant: Plant, fault: str) -> None:
    assert any(fault in found for found in found_in(lambda documents: plant(pod(documents))))


OTHER = {"matchLabels": {"app": "wob"}}


@pytest.mark.parametrize(
    ("kind", "plant", "fault"),
    [
        ("Deployment", lambda s: s.update(selector=OTHER), "does not match its own pods"),
        ("Service", lambda s: s.update(selector={"app": "wob"}), "no pod matches app=wob"),
        ("Service", lambda s: s["ports"][0].update(targetPort="x"), "Deployment web has no port x"),
        ("Service", lambda s: s["ports"][0].pop("targetPort"), "Deployment web has no port 80"),
        ("PodDisruptionBudget", lambda s: s.update(selector=OTHER), "no pod matches app=wob"),
        ("NetworkPolicy", lambda s: s.update(podSelector=OTHER), "no pod matches app=wob"),
        (
            "NetworkPolicy",
            lambda s: s["ingress"][0].update({"from": [{"podSelector": OTHER}]}),
            "no pod matches app=wob",
        ),
        (
            "NetworkPolicy",
            lambda s: s["ingress"][0].update(ports=[{"port": 81}]),
            "ingress port 81",
        ),
        ("NetworkPolicy", lambda s: s.update(policyTypes=["Ingres"]), "nobody knows Ingres"),
        ("NetworkPolicy", lambda s: s.update(policyTypes=["Egress"]), "has no effect without Ingr"),
        (
            "NetworkPolicy",
            lambda s: s["ingress"][0].update(
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.nam": "x"}}}
                    ]
                }
            ),
            "no namespace has the label kubernetes.io/metadata.nam",
        ),
        (
            "NetworkPolicy",
            lambda s: s["ingress"][0].update(
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}
                    ]
                }
            ),
            "there is no Namespace x",
        ),
        (
            "NetworkPolicy",
            lambda s: s["ingress"][0].update({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}),
            "10.0.0.0/33",
        ),
        (
            "NetworkPolicy",
            lambda s: s["podSelector"].update(
                matchExpressions=[{"key": "app", "operator": "NotIn", "values": ["wob"]}]
            ),
            "no pod matches app=wob",
        ),
        ("ServiceMonitor", lambda s: s["endpoints"][0].update(path="/metric"), "knows /metric"),
        ("ServiceMonitor", lambda s: s.update(podTargetLabels=["ap"]), "no pod has ap"),
        ("ServiceMonitor", lambda s: s.update(selector=OTHER), "no Service matches app=wob"),
        ("ServiceMonitor", lambda s: s["endpoints"][0].update(port="x"), "Service web has no port"),
    ],
)
def test_a_selector_or_port_that_leads_nowhere_is_found(
    kind: str, plant: Plant, fault: str
) -> None:
    found = found_in(lambda documents: plant(the(kind, documents)["spec"]))
    assert any(line.startswith(f"{kind} web: ") and fault in line for line in found)


def test_a_binding_to_nobody_or_to_no_role_is_found() -> None:
    def plant(documents: list[Document]) -> None:
        binding = the("RoleBinding", documents)
        binding["roleRef"]["name"] = "wob"
        binding["subjects"][0]["name"] = "wob"

    assert found_in(plant) == [
        "RoleBinding web: there is no Role wob",
        "RoleBinding web: there is no ServiceAccount wob",
    ]


def test_what_is_made_elsewhere_is_not_missed() -> None:
    documents = read(GOOD)
    documents.remove(the("Secret", documents))
    assert check(documents, IMAGES) == ["Deployment web: there is no Secret keys"]
    assert check(documents, {"Secret/keys", *IMAGES}) == []
    assert check(documents, {"Secret/keys/token", *IMAGES}) == []
    [fault] = check(documents, {"Secret/keys/other", *IMAGES})
    assert fault == "Deployment web: Secret keys has no key token"


# Custom resources


@pytest.fixture
def service() -> Document:
    from toolwise.serving.cluster import ClusterSettings

    cluster = ClusterSettings(namespace="toolwise", image="toolwise/agent:1")
    return inference_service(ServingSettings(name="metis"), cluster, "s3://models/metis/3", None)


RUNTIME = {"ServingRuntime/kserve-huggingfaceserver"}


def test_an_inference_service_is_read_by_kserves_own_models(service: Document) -> None:
    assert not any("no such field" in fault for fault in check([service], RUNTIME))
    service["spec"]["predictor"]["model"]["storageURI"] = "x"
    [fault] = [fault for fault in check([service], RUNTIME) if "no such field" in fault]
    assert "spec.predictor.model.storageURI: there is no such field" in fault


def test_a_runtime_that_is_nowhere_is_found(service: Document) -> None:
    assert any("there is no ServingRuntime" in fault for fault in check([service]))


def test_the_pods_of_an_inference_service_keep_the_rules_as_well(service: Document) -> None:
    [agent] = service["spec"]["transformer"]["containers"]
    agent["image"] = "toolwise/agent:latest"
    service["spec"]["predictor"]["model"]["resources"].pop("limits")
    found = check([service], RUNTIME)
    assert any("InferenceService metis, transformer: " in f and "`latest`" in f for f in found)
    assert any("InferenceService metis, predictor: model: resources.limits" in f for f in found)


def test_a_training_runtime_is_read_by_trainers_own_models() -> None:
    runtime: Document = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "torch"},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {
                "spec": {
                    "replicatedJobs": [
                        {
                            "name": "node",
                            "template": {"spec": {"template": {"spec": pod(read(GOOD))}}},
                        }
                    ]
                }
            },
        },
    }
    outside = {
        "ServiceAccount/web",
        "ConfigMap/settings",
        "Secret/keys",
        "Image/web:latest",
        *IMAGES,
    }
    assert check([runtime], outside) == []
    [job] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job["template"]["spec"]["template"]["spec"]["containers"][0]["image"] = "web:latest"
    [fault] = check([runtime], outside)
    assert "ClusterTrainingRuntime torch, node" in fault
    runtime["spec"]["mlPolicy"]["numNode"] = 2
    assert any("numNode" in fault for fault in check([runtime], outside))
