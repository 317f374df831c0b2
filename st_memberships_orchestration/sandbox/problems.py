"""Answers of the API: JSON bodies and RFC 7807 problems in the vendor's shape."""

import hashlib
import itertools
from typing import Any

from starlette.responses import Response

from st_memberships_orchestration.sandbox.wire import dumps

_TITLES = {
    400: "One or more validation errors occurred.",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "An error occurred while processing your request.",
}
_traces = itertools.count(1)


class Problem(Exception):
    """A request that is answered with a ProblemDetails body.

    Args:
        status: HTTP status.
        title: One sentence; the usual one of the status if left out.
        errors: Field name to what is wrong with it.
        headers: Extra response headers.
    """

    def __init__(
        self,
        status: int,
        title: str | None = None,
        *,
        errors: dict[str, list[str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.title = title or _TITLES[status]
        self.errors = errors or {}
        self.headers = headers
        super().__init__(self.title)

    def response(self) -> Response:
        """The HTTP response."""
        body = {
            "type": f"https://httpstatuses.io/{self.status}",
            "title": self.title,
            "status": self.status,
            "traceId": _trace_id(),
            "errors": self.errors,
            "data": {},
        }
        return Response(
            dumps(body),
            status_code=self.status,
            media_type="application/json",
            headers=self.headers,
        )


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON response of any value."""
    return Response(dumps(value), status_code=status, media_type="application/json")


def no_such_operation() -> Response:
    """What the API gateway says about a path or method it does not know."""
    return json_response(
        {"statusCode": 404, "message": "Unable to match incoming request to an operation."}, 404
    )


def _trace_id() -> str:
    digits = hashlib.sha256(str(next(_traces)).encode()).hexdigest()
    return f"00-{digits[:32]}-{digits[32:48]}-00"
