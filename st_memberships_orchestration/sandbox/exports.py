"""The seven export operations."""

from starlette.responses import Response

from st_memberships_orchestration.sandbox.clock import parse_moment
from st_memberships_orchestration.sandbox.feeds import ForeignTokenError, Place
from st_memberships_orchestration.sandbox.operations import Call
from st_memberships_orchestration.sandbox.problems import Problem
from st_memberships_orchestration.sandbox.wire import dumps


def export(call: Call, feed_name: str) -> Response:
    """One page of a feed."""
    feed = call.tenant.feeds[feed_name]
    place = _starting_place(call, feed_name)
    page = feed.page(
        place,
        size=call.page_size,
        now=call.now,
        recent=call.query.boolean("includeRecentChanges") or False,
        salt=call.tenant.client_id,
    )
    token = call.tenant.tokens.seal(_scope(call, feed_name), page.place)
    head = dumps({"hasMore": page.has_more, "continueFrom": token})
    body = head[:-1] + b',"data":[' + b",".join(page.rows) + b"]}"
    return Response(body, media_type="application/json")


def _starting_place(call: Call, feed_name: str) -> Place:
    """Where ``from`` points: nowhere, a date, or the place of a continuation token."""
    text = call.query.text("from")
    if not text:
        return Place()
    try:
        return call.tenant.feeds[feed_name].since(parse_moment(text))
    except ValueError:
        pass
    try:
        return call.tenant.tokens.open(_scope(call, feed_name), text)
    except ForeignTokenError as error:
        raise Problem(
            400,
            "The continuation token is not valid.",
            errors={"from": ["The value is neither a date nor a token of this export."]},
        ) from error


def _scope(call: Call, feed_name: str) -> str:
    return f"{call.tenant.name}/{feed_name}"
