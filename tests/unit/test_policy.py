"""A policy is a small YAML file, and its schema is the one that is shipped."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import toolwise.promotion.policy as policy_module
from toolwise.errors import InputError
from toolwise.profile import load_profile, profile_names
from toolwise.promotion.policy import GatePolicy, policy_schema

SHIPPED = Path(policy_module.__file__).with_name("policy.schema.json")


def test_the_shipped_schema_is_the_models():
    assert json.loads(SHIPPED.read_text()) == policy_schema(), (
        "python -m toolwise.promotion.policy > toolwise/promotion/policy.schema.json"
    )


def test_every_setting_is_described_to_an_editor():
    for name, setting in policy_schema()["properties"].items():
        assert setting["description"], name


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{}", True),
        ("redundant_call_rate_max: 0.1\nbenchmarks: [vstar]\ndataset: 3fa94c01", True),
        ("redundant_call_rate_max: 2", False),
        ("min_itmes: 3", False),
        ("dataset: not-hex", False),
        ("incomparable_champion: ignore", False),
        ("mode: tools_off", False),
    ],
)
def test_schema_and_model_accept_the_same_policies(text: str, valid: bool, tmp_path: Path):
    schema = jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text()))
    assert schema.is_valid(yaml.safe_load(text)) is valid
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    if valid:
        GatePolicy.load(path)
    else:
        with pytest.raises(InputError, match=r"policy\.yaml: "):
            GatePolicy.load(path)


@pytest.mark.parametrize("text", ["false", "0", "[]", "''"])
def test_what_is_no_mapping_is_no_policy(text: str, tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"policy\.yaml: policy: "):
        GatePolicy.load(path)
    path.write_text("# everything as it is by default\n")
    assert GatePolicy.load(path) == GatePolicy()


def test_a_setting_that_stands_twice_is_refused(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text("min_items: 100\nmode: greedy\nmin_items: 1\n")
    with pytest.raises(InputError, match="min_items stands twice"):
        GatePolicy.load(path)


def test_what_is_no_text_is_no_policy(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"mode: \xff")
    with pytest.raises(InputError, match=r"policy\.yaml: the policy is not YAML"):
        GatePolicy.load(path)


@pytest.mark.parametrize("name", profile_names())
def test_the_policy_of_every_profile_is_valid_under_the_schema(name: str):
    section = load_profile(name).promote.model_dump(mode="json", exclude_unset=True)
    jsonschema.Draft202012Validator(policy_schema()).validate(section)
