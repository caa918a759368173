"""What a Schemathesis run is told of this API beyond its description; loaded by that program.

Each failure that is let pass is named with its reason: none of them is a server error, and the
conformance suite holds the broker to the very answers.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData

LET_PASS = (
    # A token that the broker has not sealed for this very query: no schema can say so.
    "NextToken is not one that this query was given",
    # The keys of filters are closed, but KeyValuePair is the schema of tags as well.
    "is neither owner nor tag:<key>",
    # It stands in the query or in a form, once: no schema can say so.
    "one grant_type is wanted",
    # Many entries of much text each: the schema limits both, and has no word for all together.
    "a request body may have 4194304 bytes",
    # Documented: a session that isn't READY yet answers 400.
    "it is neither in READY state",
)


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Say whether a failure counts."""
    refused = isinstance(failure, RejectedPositiveData) and response.status_code in {400, 413}
    return not (refused and any(words in response.text for words in LET_PASS))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put an entry that succeeds before the others, so that links have somewhere to lead."""
    is_create = case.operation.path == "/createSessions"
    if is_create and os.environ.get("ALWAYS_CREATE") and isinstance(case.body, list):
        good = {"Name": "made", "Owner": "user1", "Type": "VIRTUAL"}
        case.body = [good, *case.body][:1000]
