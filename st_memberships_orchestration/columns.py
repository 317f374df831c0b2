"""Columns as all rooms declare them: Arrow fields, with their meaning where Delta keeps such."""

import pyarrow as pa

INSTANT = pa.timestamp("us", tz="UTC")
MONEY = pa.decimal128(18, 6)
"""An amount in the account's currency, exact to a millionth."""


def described(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """A column and, as its comment in Delta and its text in the UI, what it means."""
    return pa.field(name, kind, metadata={"comment": meaning})
