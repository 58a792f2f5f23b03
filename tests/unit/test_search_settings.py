"""Which search a run has: what a profile may say, and where it comes to hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.metis import STEPS, compile_pipeline
from toolwise.errors import InputError
from toolwise.profile import load_profile
from toolwise.serving.inference_service import ClusterSettings, inference_service
from toolwise.serving.server import _parser, _settings
from toolwise.serving.settings import ServingSettings
from toolwise.tools import tool_schemas
from toolwise.tools.search.settings import SearchSettings, TextSearchSettings

SECTIONS = (
    "name: mine\ndata: {signboard: {}}\nbase: {train: {}}\ncurate_sft: {}\nsft: {}\ncurate_rl: {}\n"
    "hdpo: {}\nevaluate: {}\npromote: {}\nserve: {}\n"
)


def written(folder: Path, more: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(SECTIONS + more)
    return str(path)


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ("{text: {backend: searxng}}", "search.text: the backend 'searxng' needs `url`"),
        ("{text: {backend: replay}}", "search.text: the backend 'replay' needs `recording`"),
        ("{text: {url: 'http://x'}}", "search.text: `url` is not for the backend 'local'"),
        ("{text: {backend: searxng, url: ftp://x}}", "search.text.url: string should match"),
        ("{text: {backend: bing}}", "search.text.backend: input should be 'local', 'searxng'"),
        ("{text: {results: 11}}", "search.text.results: input should be less than or equal to 10"),
        ("{image: {}}", "search.image: the backend 'local' needs `index`"),
        ("{image: {backend: serper}}", "search.image: the backend 'serper' needs `upload`"),
        (
            "{image: {backend: replay, recording: r, index: i}}",
            "search.image: `index` is not for the backend 'replay'",
        ),
        ("{image: {backend: serper, upload: /tmp}}", "search.image.upload: string should match"),
        ("{txt: {}}", "search.txt: there is no such setting; allowed here: text, image"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, search: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        load_profile(written(tmp_path, f"search: {search}\n"))
    assert says in str(raised.value)


def test_search_holds_for_every_step_that_has_tools_and_a_step_may_have_its_own(
    tmp_path: Path,
) -> None:
    profile = load_profile(written(tmp_path, "search: {text: {backend: serper}}\n"))
    steps = (profile.curate_sft, profile.sft, profile.curate_rl, profile.hdpo, profile.evaluate)
    for step in (*steps, profile.serve):
        assert step.search == profile.search
    text = SECTIONS.replace("evaluate: {}", "evaluate: {search: {text: {results: 3}}}")
    (tmp_path / "own.yaml").write_text(text + "search: {text: {backend: serper}}\n")
    own = load_profile(str(tmp_path / "own.yaml"))
    assert own.evaluate.search == SearchSettings(text=TextSearchSettings(results=3))
    assert own.hdpo.search == own.search


def test_pods_get_the_key_that_the_search_needs_and_no_other(tmp_path: Path) -> None:
    kubeflow = (
        "kubeflow: {image: 'i:1', operator_image: 'o:1', tracking_uri: 'http://m', secret: s, "
        "serving: {namespace: n, image: 'a:1'}}\n"
    )
    serper = kubeflow + "search: {image: {backend: serper, upload: 's3://b/p'}}\n"
    for more, pods in ((kubeflow, 0), (serper, len(STEPS))):
        profile = load_profile(written(tmp_path, more))
        compile_pipeline(profile, tmp_path / "pipeline.yaml")
        assert (tmp_path / "pipeline.yaml").read_text().count("envVar: SERPER_API_KEY") >= pods
        assert ("SERPER_API_KEY" in (tmp_path / "pipeline.yaml").read_text()) == (pods > 0)
        cluster = ClusterSettings(namespace="n", image="i:1", secret="s")
        service = inference_service(profile.serve, cluster, "s3://models/1", None)
        [container] = service["spec"]["transformer"]["containers"]
        key = {"secretKeyRef": {"name": "s", "key": "SERPER_API_KEY"}}
        expected = [{"name": "SERPER_API_KEY", "valueFrom": key}] if pods else []
        assert [one for one in container["env"] if "valueFrom" in one] == expected


def test_without_search_nothing_is_set(tmp_path: Path) -> None:
    assert load_profile(written(tmp_path, "")).evaluate.search is None


def test_the_prompt_offers_image_search_only_where_there_is_one() -> None:
    assert [s["function"]["name"] for s in tool_schemas()] == ["python", "text_search"]
    image = SearchSettings.model_validate({"image": {"index": "pictures"}})
    names = [s["function"]["name"] for s in tool_schemas(image)]
    assert names == ["python", "text_search", "image_search"]


@pytest.mark.parametrize("search", [None, {"text": {"backend": "serper"}, "image": None}])
def test_an_endpoint_is_started_with_the_search_it_was_given(search: object) -> None:
    given = ServingSettings.model_validate({"search": search, "private_images": True})
    flags = [part for option in given.options().items() for part in option]
    assert _settings(_parser().parse_args(["--upstream", "http://x/v1", *flags])) == given


def test_search_that_is_no_json_is_named() -> None:
    options = _parser().parse_args(["--upstream", "http://x/v1", "--search", "{"])
    with pytest.raises(InputError, match=r"--search \{:"):
        _settings(options)
