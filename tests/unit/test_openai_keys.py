"""API keys from a file that may change at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolwise.errors import InputError
from toolwise.serving.keys import KeyFile
from toolwise.serving.openai_api import RequestError

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


def written(path: Path, text: str) -> Path:
    """As a secret is mounted: the new file takes the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    return new.replace(path)


def entry(name: str, key: str, **limits: int) -> str:
    fields = [f"name: {name}", f"key: {key}", *(f"{k}: {v}" for k, v in limits.items())]
    return f"- {{{', '.join(fields)}}}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "keys.yaml", entry("alice", ALICE, concurrent=2))


def test_a_known_key_says_who_asks(path: Path) -> None:
    caller = KeyFile(path).caller(f"Bearer {ALICE}")
    assert (caller.name, caller.concurrent) == ("alice", 2)
    assert ALICE not in repr(caller)


@pytest.mark.parametrize(
    "header", [None, "", ALICE, f"Basic {ALICE}", "Bearer", "Bearer ", f"Bearer {BOB}", "Bearer é"]
)
def test_anything_else_is_a_401(path: Path, header: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        KeyFile(path).caller(header)
    assert refusal.value.status == 401


def test_a_changed_file_is_read_again(path: Path) -> None:
    keys = KeyFile(path)
    written(path, entry("bob", BOB))
    assert keys.caller(f"Bearer {BOB}").name == "bob"
    with pytest.raises(RequestError):
        keys.caller(f"Bearer {ALICE}")


@pytest.mark.parametrize("text", ["", "- {name: x", "[]", "- {name: eve, key: short}\n"])
def test_a_change_that_cannot_be_read_changes_nothing(path: Path, text: str) -> None:
    keys = KeyFile(path)
    written(path, text)
    assert keys.caller(f"Bearer {ALICE}").name == "alice"
    written(path, entry("bob", BOB))
    assert keys.caller(f"Bearer {BOB}").name == "bob"


def test_a_file_that_is_gone_changes_nothing(path: Path) -> None:
    keys = KeyFile(path)
    path.unlink()
    assert keys.caller(f"Bearer {ALICE}").name == "alice"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- {name: x", "not valid YAML"),
        ("[]", "must list keys"),
        (entry("alice", ALICE) + entry("alice", BOB), "own name"),
        (entry("alice", ALICE, concurrent=0), r"\[0\]\['concurrent'\]"),
        ("- {name: eve, key: tooshort}\n", r"\[0\]\['key'\]"),
        ("- {name: eve}\n", r"\[0\]\['key'\]"),
        ("- name: eve\n  key: |\n    tooshort-0123456789\n", r"\[0\]\['key'\].*without spaces"),
        (entry("eve", "tooshort-κλειδί-0123"), r"\[0\]\['key'\].*ASCII"),
        (entry("eve", ALICE) + entry("alice", ALICE), "one key under two names"),
    ],
)
def test_a_file_that_lists_no_keys_is_refused_without_quoting_it(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as refusal:
        KeyFile(written(tmp_path / "keys.yaml", text))
    assert "tooshort" not in str(refusal.value)


def test_every_key_is_compared_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path, entry("alice", ALICE) + entry("bob", BOB))
    keys = KeyFile(path)
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("toolwise.serving.keys.hmac.compare_digest", compare)
    assert keys.caller(f"Bearer {ALICE}").name == "alice"
    assert len(compared) == 2
    assert len({len(side) for pair in compared for side in pair}) == 1
