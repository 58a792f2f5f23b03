"""Whether a manifest has the fields its kind has, and no others.

Kubernetes' own kinds are read by `kubernetes_validate`, strictly, for the oldest version that is
supported and the newest it knows. Custom resources are read by the typed models their projects
publish on PyPI (a field that does not come back is unknown) and by the CRDs' schemas, where these
lie beside the checkout; the kinds of other operators by the schemas in `crds/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kserve.models
import kubeflow_trainer_api.models as trainer_models
import kubernetes_validate
from kubernetes import client as k8s
from kubernetes_validate import utils as published_schemas
from referencing import Registry, Resource

Document = dict[str, Any]

OLDEST = "1.31"
NEWEST = kubernetes_validate.latest_version()
PUBLISHED = Path(__file__).parents[3] / "shared" / "schemas"
"""OpenAPI schemas of KServe's and Trainer's CRDs; may be absent."""
OPERATORS = Path(__file__).parent / "crds"
"""Schemas of the kinds of other operators: the fields in use here, as their CRDs have them."""


def schema_faults(document: Document) -> Iterator[str]:
    """What is wrong with a manifest's fields, with the path of each."""
    group = document["apiVersion"].partition("/")[0]
    if group in _TYPED:
        yield from _TYPED[group](document)
        yield from _crd_faults(PUBLISHED, document)
    elif _crd(OPERATORS, document["kind"], document["apiVersion"]) is not None:
        yield from _crd_faults(OPERATORS, document)
    else:
        yield from _kubernetes_faults(document)


def _kubernetes_faults(document: Document) -> Iterator[str]:
    for version in (OLDEST, NEWEST):
        try:
            validator = _kubernetes_validator(version, document["kind"], document["apiVersion"])
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message
            return
        faults = [*_faults(validator, document)]
        if faults:
            yield from (f"{fault} (Kubernetes {version})" for fault in faults)
            return


@cache
def _kubernetes_validator(
    version: str, kind: str, api_version: str
) -> jsonschema.Draft202012Validator:
    """What `kubernetes_validate.validate` makes for every single document, made once."""
    full = next(v for v in reversed(published_schemas.all_versions()) if v.startswith(version))
    folder = f"kubernetes-json-schema/v{full}-local-strict"
    head, _, tail = api_version.rpartition("/")
    group = head.partition(".")[0]
    name = f"{kind.lower()}-{group}-{tail}" if group else f"{kind.lower()}-{tail}"
    try:
        schema = published_schemas.schema_contents(f"{folder}/{name}.json", version)
    except FileNotFoundError:
        raise kubernetes_validate.SchemaNotFoundError(
            kind=kind, version=version, api_version=api_version
        ) from None
    return jsonschema.Draft202012Validator(schema, registry=_definitions(folder, version))


@cache
def _definitions(folder: str, version: str) -> Registry[Any]:
    contents = published_schemas.schema_contents(f"{folder}/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


# KServe and Kubeflow Trainer


class _Response(NamedTuple):
    """What the Kubernetes client reads an object from."""

    data: str


def _kserve_faults(document: Document) -> Iterator[str]:
    version = document["apiVersion"].rpartition("/")[2]
    name = f"{version[0].upper()}{version[1:]}{document['kind']}"
    model = getattr(kserve.models, name, None)
    if model is None:
        yield f"KServe has no kind {document['kind']} in {document['apiVersion']}"
        return
    _teach_the_client()
    client = k8s.ApiClient()
    try:
        read = client.deserialize(_Response(json.dumps(document)), model)
    except ValueError as error:
        yield str(error)
        return
    yield from _lost(document, client.sanitize_for_serialization(read))


@cache
def _teach_the_client() -> None:
    """The client looks a field's type up by name among Kubernetes' own models."""
    for name in dir(kserve.models):
        if name.startswith("V1") and not hasattr(k8s.models, name):
            setattr(k8s.models, name, getattr(kserve.models, name))


def _trainer_faults(document: Document) -> Iterator[str]:
    version = document["apiVersion"].rpartition("/")[2]
    name = f"Trainer{version[0].upper()}{version[1:]}{document['kind']}"
    model = getattr(trainer_models, name, None)
    if model is None:
        yield f"Trainer has no kind {document['kind']} in {document['apiVersion']}"
        return
    try:
        read = model.from_dict(json.loads(json.dumps(document))).to_dict()
    except ValueError as error:
        yield str(error)
        return
    yield from _lost(document, read)


_TYPED: dict[str, Callable[[Document], Iterator[str]]] = {
    "serving.kserve.io": _kserve_faults,
    "trainer.kubeflow.org": _trainer_faults,
}


def _lost(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """Fields that a typed model did not take in."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            where = f"{path}.{name}".lstrip(".")
            if name not in read:
                if value not in ({}, [], None):
                    yield f"{where}: there is no such field"
            else:
                yield from _lost(value, read[name], where)
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(one, other, f"{path}[{index}]")
    elif given != read:
        yield f"{path}: {given!r} is read as {read!r}"


# Schemas of custom resource definitions


def _crd_faults(folder: Path, document: Document) -> Iterator[str]:
    schema = _crd(folder, document["kind"], document["apiVersion"])
    if schema is not None:
        yield from _faults(jsonschema.Draft202012Validator(schema), document)


@cache
def _crd(folder: Path, kind: str, api_version: str) -> Document | None:
    group, _, version = api_version.partition("/")
    file = folder / f"{kind.lower()}_{group}_{version}.json"
    if not file.is_file():
        return None
    schema = _strict(json.loads(file.read_text(encoding="utf-8"))["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(schema: Any) -> Any:
    """A CRD's schema as Kubernetes applies it with `fieldValidation=Strict`."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(value) for name, value in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if made.pop("nullable", None) is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if isinstance(schema.get("properties"), dict) and not made.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        made.setdefault("additionalProperties", False)
    return made


def _faults(validator: jsonschema.Draft202012Validator, document: Document) -> Iterator[str]:
    for error in validator.iter_errors(document):
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{where}: {error.message}" if where else error.message
