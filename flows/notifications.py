"""Notifications: automations of the Prefect server that send a message when a run of a deployment fails, is late, waits or is done.

The server sends them, so they also tell of a run whose machine is gone. They stay until they are taken away, in its pages or by
`posttrain notify --off`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, get_args
from uuid import UUID

if TYPE_CHECKING:
    from prefect.automations import Automation

Occasion = Literal["failed", "late", "waiting", "completed"]
OCCASIONS: tuple[Occasion, ...] = get_args(Occasion)
EVENTS: dict[Occasion, set[str]] = {
    "failed": {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
    "late": {"prefect.flow-run.Late"},
    "waiting": {"prefect.flow-run.Paused", "prefect.flow-run.Suspended"},
    "completed": {"prefect.flow-run.Completed"},
}
TAG = "posttrain"  # of every deployment in prefect.yaml; its runs have it too
BLOCK = "posttrain"
SUBJECT = "{{ flow_run.name }}: {{ flow_run.state.name }}"
BODY = (
    "Flow {{ flow.name }}, run {{ flow_run.name }}: {{ flow_run.state.name }} since {{ flow_run.state.timestamp }}\n"
    "{{ (flow_run.state.message or '')[:500] }}\n"
    "{{ flow_run|ui_url }}"
)


def name_of(occasion: Occasion) -> str:
    """The automation's name, by which it is found again."""
    return f"posttrain: {occasion}"


def automation(occasion: Occasion, block: UUID) -> Automation:
    """The automation that sends a message through a notification block, once for each run and occasion."""
    from prefect.automations import Automation, EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import SendNotification

    return Automation(
        name=name_of(occasion),
        description="Made by `posttrain notify`; it makes it anew.",
        trigger=EventTrigger(
            expect=EVENTS[occasion],
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[SendNotification(block_document_id=block, subject=SUBJECT, body=BODY)],
    )


def webhook_block(url: str) -> UUID:
    """The block that posts {"text": ...} to a URL, as Slack and Mattermost take it. The URL is kept as a secret: who knows it can post."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    if not url.startswith(("https://", "http://")):
        raise ValueError("POSTTRAIN_NOTIFY_URL is not an http address")
    block = CustomWebhookNotificationBlock(
        name=BLOCK,
        url="{{url}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"url": url},  # type: ignore[arg-type]
    )
    saved = block.save(BLOCK, overwrite=True)
    assert isinstance(saved, UUID)  # outside of an event loop it is no coroutine
    return saved


def saved_block(reference: str) -> UUID:
    """The id of a notification block that the server has, by TYPE/NAME such as slack-webhook/team.

    Raises:
        ValueError: there is none of this type and name, or it does not notify.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, _, name = reference.partition("/")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            raise ValueError(f"{reference!r}: the server has no such block; `prefect block ls` lists those it has") from None
    capabilities = found.block_schema.capabilities if found.block_schema else []
    if "notify" not in capabilities:
        raise ValueError(f"{reference!r} is a block that cannot notify; `prefect block type ls` shows which can")
    return found.id


def install(block: UUID, occasions: Sequence[Occasion]) -> None:
    """Have exactly these automations on the server."""
    remove()
    for occasion in occasions:
        automation(occasion, block).create()


def remove() -> int:
    """Take them away; returns how many there were."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = [one for occasion in OCCASIONS for one in client.read_automations_by_name(name_of(occasion))]
        for one in found:
            client.delete_automation(one.id)
    return len(found)
