"""A profile is right as a whole, or the message says what is wrong, where, and what is allowed."""

from pathlib import Path

import pytest
import yaml

from toolwise.errors import InputError
from toolwise.profile import REGISTRY, Profile, load_profile, profile_names

SECTIONS = {
    "name": "mine",
    "data": {"signboard": {}},
    "base": {"train": {}},
    "curate_sft": {},
    "sft": {},
    "curate_rl": {},
    "hdpo": {},
    "evaluate": {},
    "promote": {},
    "serve": {},
}


@pytest.fixture
def written(tmp_path: Path):
    def write(**changes) -> str:
        path = tmp_path / "mine.yaml"
        content = {key: value for key, value in (SECTIONS | changes).items() if value is not ...}
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_that_comes_with_toolwise_loads_and_bears_its_own_name(name: str):
    assert load_profile(name).name == name


def test_there_is_one_for_a_laptop_one_for_tests_and_one_for_a_cluster():
    assert {"demo", "smoke", "qwen3-vl-8b"} <= set(profile_names())


def test_the_cluster_profile_has_the_papers_hyperparameters():
    profile = load_profile("qwen3-vl-8b")
    assert profile.hdpo.prompts_per_step == 128
    assert profile.hdpo.num_generations == 16
    assert profile.hdpo.learning_rate == 1e-6
    assert profile.hdpo.max_tokens == 16384
    assert profile.base.checkpoint == "hf://Qwen/Qwen3-VL-8B-Instruct"
    assert profile.kubeflow is not None


def test_an_unknown_profile_lists_those_there_are():
    with pytest.raises(InputError, match=r"no profile 'dmeo'; there are: .*demo.*qwen3-vl-8b"):
        load_profile("dmeo")


def test_a_profile_can_be_any_yaml_file(written):
    assert load_profile(written(seed=7)).seed == 7


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere/p\.yaml: the profile cannot be read: No such"):
        load_profile("nowhere/p.yaml")


def test_an_unknown_setting_is_named_with_what_is_allowed(written):
    with pytest.raises(InputError) as caught:
        load_profile(written(hdpo={"learning_rat": 1e-5}))
    message = str(caught.value)
    assert "mine.yaml: hdpo.learning_rat: there is no such setting" in message
    assert "learning_rate" in message


def test_an_unknown_section_is_named_with_what_is_allowed(written):
    with pytest.raises(InputError, match=r"rewards: there is no such setting; .*curate_rl, hdpo"):
        load_profile(written(rewards={}))


def test_an_unknown_setting_deep_inside_is_found(written):
    with pytest.raises(InputError, match=r"data\.signboard\.itmes: .*benchmark_items"):
        load_profile(written(data={"signboard": {"itmes": 3}}))


def test_a_wrong_value_is_named_with_the_field(written):
    with pytest.raises(InputError, match=r"mine\.yaml: sft\.steps: .*greater than 0 \(given: -4\)"):
        load_profile(written(sft={"steps": -4}))


def test_every_fault_is_told_at_once(written):
    with pytest.raises(InputError) as caught:
        load_profile(written(sft={"steps": -4}, name="No Spaces!", serve=...))
    assert len(str(caught.value).splitlines()) == 3
    assert "serve: is missing" in str(caught.value)


@pytest.mark.parametrize("data", [{}, {"signboard": {}, "published": {}}])
def test_data_comes_from_exactly_one_source(written, data):
    with pytest.raises(InputError, match="data"):
        load_profile(written(data=data))


def test_a_base_model_is_trained_or_fetched_not_both(written):
    with pytest.raises(InputError, match=r"base: give either `train` or `checkpoint`"):
        load_profile(written(base={"train": {}, "checkpoint": "hf://a/b"}))


@pytest.mark.parametrize("setting", ["image", "operator_image", "serving"])
def test_a_profile_for_a_cluster_has_an_image_for_every_pod(tmp_path: Path, setting: str):
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    del content["kubeflow"][setting]
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"kubeflow\.{setting}: is missing"):
        load_profile(str(path))


@pytest.mark.parametrize("text", ["- a\n- list\n", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="a profile is a mapping"):
        load_profile(str(path))


def test_broken_yaml_is_refused_with_its_place(tmp_path: Path):
    path = tmp_path / "p.yaml"
    path.write_text("name: [unclosed\n")
    with pytest.raises(InputError, match=r"p\.yaml: not valid YAML.*(.|\n)*line"):
        load_profile(str(path))


def test_a_registry_stands_in_for_that_of_toolwises_own_images_alone():
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    content["kubeflow"]["vllm_image"] = "vllm/vllm-openai:v1"
    profile = Profile.model_validate(content)
    moved = profile.at_registry("registry.example.com/toolwise/")
    kubeflow = moved.kubeflow
    assert kubeflow is not None
    assert kubeflow.serving is not None
    assert (kubeflow.image, kubeflow.operator_image, kubeflow.vllm_image) == (
        "registry.example.com/toolwise/trainer:0.1.0",
        "registry.example.com/toolwise/operator:0.1.0",
        "vllm/vllm-openai:v1",
    )
    assert kubeflow.serving.image == "registry.example.com/toolwise/agent:0.1.0"
    assert profile.at_registry(REGISTRY) == profile
    tagged = profile.at_registry(tag="v9").kubeflow
    assert tagged is not None
    assert (tagged.image, tagged.vllm_image) == (
        "ghcr.io/toolwise/trainer:v9",
        "vllm/vllm-openai:v1",
    )
    for registry, tag in (("", None), ("https://example.com", None), (REGISTRY, "a tag")):
        with pytest.raises(InputError, match=r"registry .* and tag .* is not a name of an image"):
            profile.at_registry(registry, tag)
    for other in (moved, load_profile("demo")):
        with pytest.raises(InputError, match=r"has no image of ghcr\.io"):
            other.at_registry("elsewhere.example.com")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cpu", "sixteen"),
        ("cpu", "0"),
        ("memory", "256 GB"),
        ("shared_memory", "lots"),
        ("image", ""),
        ("image", "registry.example.com/team/image:1 "),
        ("operator_image", "https://registry.example.com/image"),
        ("secret", "Bad_Name"),
        ("namespace", "two.parts"),
        ("service_account", "-"),
        ("accelerator", "gpu"),
        ("tracking_uri", "toolwise-mlflow:5000"),
        ("serving.image", ""),
        ("serving.memory", "48 Gi"),
        ("accelerators", 0),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before_it_is_asked(
    tmp_path: Path, setting: str, value: object
):
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    section, _, name = setting.rpartition(".")
    (content["kubeflow"][section] if section else content["kubeflow"])[name] = value
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"kubeflow\.{setting}\b"):
        load_profile(str(path))


def test_a_benchmark_that_is_misspelt_is_no_path_and_none_to_be_promoted_by(tmp_path: Path):
    path = tmp_path / "p.yaml"

    def refused(of: str, name: str) -> str:
        content = load_profile("qwen3-vl-8b").model_dump(mode="json")
        if of == "data":
            content["data"]["published"]["benchmark"].append(name)
        else:
            content["promote"]["benchmarks"] = [name]
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(InputError) as raised:
            load_profile(str(path))
        return str(raised.value)

    told = refused("data", "vstarr")
    assert "data.published.benchmark: there is no benchmark 'vstarr'; there are: charxiv" in told
    assert "promote.benchmarks: vstarr is none of data" in refused("promote", "vstarr")
    assert "promote.benchmarks: signboard is none of data" in refused("promote", "signboard")


def test_items_of_a_file_may_be_of_any_benchmark():
    content = load_profile("qwen3-vl-8b").model_dump(mode="json")
    content["data"]["published"]["benchmark"] = ["vstar", "s3://bucket/own.parquet"]
    content["promote"]["benchmarks"] = ["own"]
    assert Profile.model_validate(content).promote.benchmarks == ("own",)


@pytest.mark.parametrize("section", ["curate_sft", "curate_rl", "hdpo", "evaluate", "serve"])
def test_a_misspelt_isolation_is_refused_by_its_section(written, section: str):
    with pytest.raises(InputError, match=rf"{section}\.isolation: .*'none', 'bubblewrap'"):
        load_profile(written(**{section: {"isolation": "bubblewarp"}}))


def test_every_step_of_the_papers_profile_that_runs_the_models_code_asks_for_gvisor():
    levels = load_profile("qwen3-vl-8b").isolation
    assert set(levels) == {"curate_sft", "curate_rl", "hdpo", "evaluate", "serve"}
    assert set(levels.values()) == {"gvisor"}
