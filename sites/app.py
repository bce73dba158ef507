"""The ClientApp: unpack, ask the site, pack. What goes wrong leaves as a code; the details stay in the site's log."""

import logging
from collections.abc import Callable
from contextlib import suppress

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmedgen.errors import (
    BudgetError,
    DataError,
    LacksArraysError,
    LedgerError,
    PrivacyError,
    SelfCheckError,
    SettingsError,
)
from fedmedgen.federation import egress, messages, records
from fedmedgen.federation.egress import Checked
from sites.opening import open_site
from sites.secure_sum import SummingSite
from sites.security import SecurityLog
from sites.site import Site

logger = logging.getLogger(__name__)

REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (BudgetError, records.REFUSED_BUDGET),
    (LedgerError, records.REFUSED_LEDGER),
    (SelfCheckError, records.REFUSED_SELFCHECK),
    (PrivacyError, records.REFUSED_POLICY),
    (SettingsError, records.REFUSED_POLICY),
    (DataError, records.REFUSED_DATA),
    (LacksArraysError, records.LACKS_ARRAYS),
)


class SiteApp(ClientApp):
    """A ClientApp that takes only what is listed, and out of which nothing but listed records or a code can come.

    Flower sends the text of an exception that escapes a ClientApp to the server, so none may.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        log = SecurityLog(context)
        try:
            log.asked(message)
            messages.check_asked(message.content, message.metadata.message_type)
            answer = super().__call__(message, context)
            messages.check_answer(answer.content)
            log.sent(message, answer)
        except Exception as error:
            logger.error("the request was not carried out", exc_info=error)
            words = ConfigRecord({records.SITE: "", records.STATUS: code_of(error)})
            answer = Message(RecordDict({records.CONFIG: words}), reply_to=message)  # by nothing that may be broken
            with suppress(OSError):  # a full disk takes no line: then this word alone leaves without one
                log.refused(error)
                log.sent(message, answer)
        return answer


app = SiteApp()


@app.query()
def join(message: Message, context: Context) -> Message:
    """Say who the site is and its public counts; a node without a site says that it is idle."""
    return _answer(message, context, lambda site: _summing(site).introduce(messages.unpack_settings(message.content)))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Run one round at the site."""
    return _answer(message, context, lambda site: site.train(messages.unpack_request(message.content)))


def _in_phase(phase: str) -> Callable[[Message, Context], Message]:
    """What answers one phase of a secure sum."""

    def answer(message: Message, context: Context) -> Message:
        return _answer(message, context, lambda site: _summing(site).answer(phase, message.content))

    return answer


for _phase in records.PHASES:
    app.train(_phase)(_in_phase(_phase))


def _summing(site: Site) -> SummingSite:
    return SummingSite(site.policy, site.load)


def _answer(message: Message, context: Context, ask: Callable[[Site], Checked]) -> Message:
    name = ""
    try:
        site = open_site(context, message.content)
        if site is None:
            content = messages.pack_reply(egress.refusal("", records.IDLE))
        else:
            name = site.policy.site
            content = messages.pack_reply(ask(site))
    except Exception as error:
        logger.exception("site %s: the request was not carried out", name or "(not opened)")
        SecurityLog(context).refused(error)
        content = messages.pack_reply(egress.refusal(name, code_of(error)))
    return Message(content, reply_to=message)


def code_of(error: Exception) -> str:
    """The word from the fixed list that may leave the site for an error."""
    return next((code for kind, code in REFUSALS if isinstance(error, kind)), records.FAULT)
