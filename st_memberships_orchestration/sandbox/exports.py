"""The seven export operations."""

from dataclasses import replace

from starlette.responses import Response

from st_memberships_orchestration.sandbox.calls import ApiCall
from st_memberships_orchestration.sandbox.clock import parse_moment
from st_memberships_orchestration.sandbox.feeds import ForeignTokenError, Page, Place
from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.wire import dumps


def export(feed_name: str, call: ApiCall) -> Response:
    """One page of a feed."""
    place = _starting_place(call, feed_name)
    page = call.tenant.feeds[feed_name].page(
        place,
        size=call.page_size,
        now=call.now,
        recent=call.query.boolean("includeRecentChanges"),
        salt=call.tenant.client_id,
    )
    match call.page_fault:
        case "empty_page":
            page = Page([], replace(place, rested=not place.rested), has_more=True)
        case "repeat_page":
            page = Page(page.rows, place, has_more=True)
    token = call.tenant.tokens.seal(_scope(call, feed_name), page.place)
    head = dumps({"hasMore": page.has_more, "continueFrom": token})
    rows = call.drift.bend(feed_name, page.rows)
    body = head[:-1] + b',"data":[' + b",".join(rows) + b"]}"
    return Response(body, media_type="application/json")


def starting_date(text: str) -> int | None:
    """The moment that ``from`` names, None if it must be a token."""
    try:
        return parse_moment(text)
    except ValueError:
        return None


def refused_token() -> Problem:
    """The 400 for a continuation token that is not accepted."""
    return Problem(
        400,
        "The continuation token is not valid.",
        errors={"from": ["The value is neither a date nor a token of this export."]},
    )


def _starting_place(call: ApiCall, feed_name: str) -> Place:
    """Where ``from`` points: nowhere, a date, or the place of a continuation token."""
    text = call.query.text("from")
    if text is None:
        return Place()
    moment = starting_date(text)
    if moment is not None:
        return call.tenant.feeds[feed_name].since(moment)
    try:
        return call.tenant.tokens.open(_scope(call, feed_name), text)
    except ForeignTokenError as error:
        raise refused_token() from error


def _scope(call: ApiCall, feed_name: str) -> str:
    return f"{call.tenant.name}/{feed_name}"
