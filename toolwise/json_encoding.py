"""JSON, written fast."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import orjson


def encode_json(value: Any) -> bytes:
    """`value` (dataclasses and all) as JSON; half of a surrogate pair becomes an escape.

    Models write such halves, and UTF-8 has no form for them.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=asdict).encode()
