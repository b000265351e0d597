"""Figures as JSON: dataclasses are objects, numbers that are not finite are null."""

from __future__ import annotations

import dataclasses
import json
import math


def of(content: object) -> str:
    return json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
