"""The studio's API answers whatever is sent, within its own description: no request ends in a defect, none hangs."""

import schemathesis
from hypothesis import HealthCheck, settings

import clip_anatomy as ca
from clip_anatomy.studio.server import create_app
from clip_anatomy.studio.session import Session

app = create_app(Session(ca.load("demo")), host="testserver")
schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_defect(case: schemathesis.Case) -> None:
    answer = case.call(timeout=20)
    assert answer.status_code != 403, "the checks of the Host turned everything away"
    assert answer.status_code < 500, (case.as_curl_command(), answer.text)
