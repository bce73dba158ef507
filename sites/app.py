"""The ClientApp: unpack, ask the site, pack. What goes wrong leaves as a code; the details stay in the site's log."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmedgen.errors import (
    BudgetError,
    DataError,
    EgressError,
    LedgerError,
    PrivacyError,
    SelfCheckError,
    SettingsError,
)
from fedmedgen.federation import egress, messages, records
from fedmedgen.federation.egress import Reply
from sites.opening import open_site
from sites.site import Site

logger = logging.getLogger(__name__)
app = ClientApp()

REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (BudgetError, records.REFUSED_BUDGET),
    (LedgerError, records.REFUSED_LEDGER),
    (SelfCheckError, records.REFUSED_SELFCHECK),
    (PrivacyError, records.REFUSED_POLICY),
    (SettingsError, records.REFUSED_POLICY),
    (EgressError, records.REFUSED_POLICY),
    (DataError, records.REFUSED_DATA),
)


@app.query()
def join(message: Message, context: Context) -> Message:
    """Say who the site is and its public counts; a node without a site says that it is idle."""
    return _answer(message, context, lambda site: site.introduce(messages.unpack_settings(message.content)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run one round at the site."""
    return _answer(message, context, lambda site: site.train(messages.unpack_request(message.content)))


def _answer(message: Message, context: Context, ask: Callable[[Site], Reply]) -> Message:
    name = ""
    try:
        site = open_site(context, message.content)
        if site is None:
            reply = Reply(config={records.SITE: "", records.STATUS: records.IDLE})
        else:
            name = site.policy.site
            reply = ask(site)
    except Exception as error:
        logger.exception("site %s: the request was not carried out", name or "(not opened)")
        reply = Reply(config={records.SITE: name, records.STATUS: code_of(error)})
        egress.check(reply, expected={}, simulation=False)
    return Message(messages.pack_reply(reply), reply_to=message)


def code_of(error: Exception) -> str:
    """The word from the fixed list that may leave the site for an error."""
    return next((code for kind, code in REFUSALS if isinstance(error, kind)), records.FAULT)
