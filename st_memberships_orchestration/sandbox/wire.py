"""JSON as the API writes it: decimals keep their digits, letters stay letters."""

import json
from decimal import Decimal
from typing import Any


def loads(text: bytes | str) -> Any:
    """Parse JSON; numbers with a fraction become decimals."""
    return json.loads(text, parse_float=Decimal)


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8; decimals are written digit by digit, half surrogates as ``?``."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except TypeError:  # the fast way does not know decimals
        text = _text(value)
    return text.encode(errors="replace")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{_text(str(k))}:{_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, Decimal):
        return format(value, "f")
    return json.dumps(value, ensure_ascii=False)
