"""schemathesis over /openapi.json: whatever fits the schema or breaks it, no answer is a 500 or of an undescribed kind.

The seed is fixed and the budget small: `make test` is to say the same every time. The double answers.
"""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from api.openapi import document
from api.ports import ApiOptions
from tests.api.double import DoubleDispatcher, DoubleNode
from tests.api.serving import Served

EXAMPLES = 6  # of each operation
APP = create_app(DoubleDispatcher(), DoubleNode(), ApiOptions(version="0"))
DOCUMENT: dict[str, Any] = json.loads(json.dumps(document(APP, "0")))
# A path without its /v1 is the same handler, and was asked already.
DOCUMENT["paths"] = {
    path: operations for path, operations in DOCUMENT["paths"].items() if f"/v1{path}" not in DOCUMENT["paths"]
}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@SCHEMA.parametrize()
@seed(5)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_an_operation(case: schemathesis.Case[Any], double: Served) -> None:
    response = case.call(base_url=double.url)
    case.validate_response(response, checks=CHECKS)
