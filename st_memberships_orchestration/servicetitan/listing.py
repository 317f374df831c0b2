"""Lists of the API as iterables: pages, limits and the form of parameters stay in here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any, Generic, TypeVar

from pydantic.alias_generators import to_camel

from st_memberships_orchestration.servicetitan.exports import iso
from st_memberships_orchestration.servicetitan.records import Record

IDS_PER_REQUEST = 50
"""`ids` takes 50 at most (OpenAPI); other lists of ids are cut alike, to keep addresses short."""

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ListPage(Generic[R]):
    """One page of a list; `total` is there when it was asked for."""

    records: list[R]
    has_more: bool
    total: int | None


class Listing(Generic[R]):
    """The records of a list, fetched page by page while they are iterated.

    Iterating twice asks twice.

    Args:
        fetch: asks for the page that the query parameters describe.
        params: the filters, by their names in Python.
        page: number of the first page; None where the list knows no pages.
    """

    def __init__(
        self,
        fetch: Callable[[dict[str, Any]], ListPage[R]],
        params: Mapping[str, Any],
        *,
        page: int | None = 1,
    ) -> None:
        self._fetch = fetch
        self._first = page
        self._queries = list(_queries(params))

    def __iter__(self) -> Iterator[R]:
        for page in self.pages():
            yield from page.records

    def pages(self) -> Iterator[ListPage[R]]:
        """The pages, from the `page` that was asked for on."""
        for query in self._queries:
            number = self._first
            while True:
                page = self._fetch(query if number is None else {**query, "page": number})
                yield page
                if number is None or not page.has_more:
                    break
                number += 1

    def total(self) -> int:
        """The number of records, as ServiceTitan counts them (`includeTotal`) where it does."""
        if self._first is None:  # lists without pages do not count
            return sum(len(page.records) for page in self.pages())
        pages = (self._fetch({**q, "pageSize": "1", "includeTotal": "true"}) for q in self._queries)
        return sum(page.total or 0 for page in pages)


def _queries(params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Query parameters as on the wire; one query for each combination of 50 ids."""
    single = {n: _text(v) for n, v in params.items() if v is not None and not _is_list(v)}
    listed = {n: v for n, v in params.items() if v is not None and _is_list(v)}
    for chunk in product(*(_chunks(values) for values in listed.values())):
        ids = {name: ",".join(map(str, part)) for name, part in zip(listed, chunk, strict=True)}
        yield {to_camel(name): value for name, value in {**single, **ids}.items()}


def _chunks(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[i : i + IDS_PER_REQUEST] for i in range(0, len(ids), IDS_PER_REQUEST)]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return iso(value)
    return str(value)
