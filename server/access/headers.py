"""The headers that tell browsers what they may do with an answer. Pure.

`Headers` here are as ASGI has them: pairs of bytes, the names in small letters.
"""

from collections.abc import Sequence

Headers = list[tuple[bytes, bytes]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; font-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy: a page of this server may load resources of this server only, and pictures that it made
itself. No page may show it in a frame."""

SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
]
"""The security headers of every answer. A browser does not guess the type of the answer, does not show it in a frame,
sends no Referer from it, does not let pages of another origin embed it, and loads for it what `POLICY` allows."""

METHODS = "GET, POST, DELETE"
REQUEST_FIELDS = (
    "Accept, Authorization, Content-Type, Inference-Header-Content-Length, traceparent, X-Request-Id, "
    "X-Request-Timeout-Seconds, X-Request-Token, X-Request-Start"
)
RESPONSE_FIELDS = (
    "Inference-Header-Content-Length, Retry-After, traceresponse, X-Request-Id, X-Anytime-Elapsed-Ms, X-Anytime-Exit, "
    "X-Anytime-Exits, X-Anytime-Meta, X-Anytime-Size, X-Anytime-Stop, X-Anytime-Unsure"
)
PREFLIGHT_S = 600
"""The seconds for which a browser may reuse the response to a CORS preflight request."""


def sharing_headers(origin: str) -> Headers:
    """The CORS headers that let pages of `origin` read an answer. They allow no cookies or other credentials that the
    browser holds; a page sends its API key itself."""
    return [
        (b"access-control-allow-origin", origin.encode()),
        (b"access-control-expose-headers", RESPONSE_FIELDS.encode()),
    ]


def preflight_headers() -> dict[str, str]:
    """The headers of the response to a CORS preflight request."""
    return {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": REQUEST_FIELDS,
        "Access-Control-Max-Age": str(PREFLIGHT_S),
    }


def secured(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The headers of an answer, and those of `SECURITY` that it does not set itself."""
    names = {name for name, _ in headers}
    return [*headers, *((name, value) for name, value in SECURITY if name not in names)]
