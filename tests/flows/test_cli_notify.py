"""`posttrain notify`: what it asks for. That messages arrive is shown with the servers of a team."""

from uuid import UUID

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.notifications import BODY, EVENTS, OCCASIONS, SUBJECT, TAG, automation, webhook_block

BLOCK = UUID(int=7)


@pytest.mark.parametrize(
    ("arguments", "url", "complaint"),
    [
        ([], "", "Set POSTTRAIN_NOTIFY_URL"),
        ([], "http://127.0.0.1:9/hook", "start `posttrain ui`, or set PREFECT_API_URL"),
        (["--off"], "", "start `posttrain ui`, or set PREFECT_API_URL"),
        (["--when", "faild"], "http://127.0.0.1:9/hook", "--when faild: there is failed, late, waiting, completed"),
    ],
)
def test_it_says_what_it_lacks(home, monkeypatch, arguments, url, complaint):
    home.mkdir()
    monkeypatch.setenv("POSTTRAIN_NOTIFY_URL", url)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    result = CliRunner().invoke(app, ["notify", *arguments], catch_exceptions=False)
    assert result.exit_code == 2 and complaint in " ".join(result.output.split())


def test_only_an_http_address_is_a_webhook():
    with pytest.raises(ValueError, match="POSTTRAIN_NOTIFY_URL is not an http address") as refused:
        webhook_block("file:///etc/passwd")
    assert "passwd" not in str(refused.value)


@pytest.mark.parametrize("occasion", OCCASIONS)
def test_prefects_server_takes_the_automation(occasion):
    from prefect.server.events.schemas.automations import AutomationCreate

    sent = automation(occasion, BLOCK).model_dump(mode="json", exclude={"id"})
    taken = AutomationCreate.model_validate(sent)
    assert taken.trigger.expect == EVENTS[occasion] and sent["trigger"]["match_related"]["prefect.resource.id"] == f"prefect.tag.{TAG}"
    assert taken.actions[0].subject == SUBJECT and taken.actions[0].body == BODY
