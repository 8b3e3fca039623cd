"""`posttrain notify`: messages about runs of the team's Prefect server, sent by the server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flows import notifications
from flows.cli.session import known_prefect
from flows.cli.terminal import out, plain
from flows.notifications import OCCASIONS, Occasion
from tasks.credentials import require_prefect

URL = "POSTTRAIN_NOTIFY_URL"


def notify(block: str, when: Sequence[str], off: bool) -> int:
    """Make the automations, or take them away.

    Raises:
        ValueError: there is no server that outlives this command, no place to send to, no such block or no such occasion.
    """
    occasions: list[Occasion] = [_occasion(name) for name in when]
    url = os.environ.get(URL)
    if not (off or block or url):
        raise ValueError(f"where to? Set {URL} to a webhook's address, or name a notification block, such as slack-webhook/team")
    with known_prefect() as is_known:
        if not is_known:
            raise ValueError("this needs a Prefect server that goes on running: start `posttrain ui`, or set PREFECT_API_URL")
        require_prefect()
        if off:
            out.print(f"{notifications.remove()} notifications taken away.")
            return 0
        target = notifications.saved_block(block) if block else notifications.webhook_block(str(url))
        notifications.install(target, occasions)
    where = block or f"custom-webhook/{notifications.BLOCK}"
    out.print(plain(f"The Prefect server tells {where} of runs that are {', '.join(occasions)}."), soft_wrap=True)
    return 0


def _occasion(name: str) -> Occasion:
    for occasion in OCCASIONS:
        if name == occasion:
            return occasion
    raise ValueError(f"--when {name}: there is {', '.join(OCCASIONS)}")
