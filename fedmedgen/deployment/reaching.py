"""Whether a site reaches its server: name, certificate and clock, by the one question that anybody may ask."""

import http.client
import math
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from fedmedgen.deployment.certificates import RENEW_DAYS
from fedmedgen.deployment.project import SiteConfig

AHEAD_SECONDS, BEHIND_SECONDS = 4.0, 300.0  # Flower takes a signature from 5 s before its time until 305 s after
COARSE_SECONDS = 1.0  # the server's word for the time is cut to seconds, and renewed once a second
SERVER_SECONDS = 10.0
Status = Literal["ok", "warning", "not ready"]


@dataclass(frozen=True)
class Found:
    """One thing looked at."""

    what: str
    status: Status
    words: str


def reach(config: SiteConfig) -> Iterator[Found]:
    """What was found of the server, its certificate and its clock; the first that fails is the last."""
    host, port = config.address
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except (OSError, ValueError) as error:
        yield Found("server", "not ready", f"the authority's certificate at {config.ca} can't be read: {error}")
        return
    connection = http.client.HTTPSConnection(host, port, timeout=SERVER_SECONDS, context=context)
    try:
        connection.connect()
        ends = ssl.cert_time_to_seconds(str((connection.sock.getpeercert() or {})["notAfter"]))
        asked = time.time()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        here = (asked + time.time()) / 2  # when it was answered, by this site's clock
    except ssl.SSLCertVerificationError as error:
        yield Found(
            "server", "not ready", f"{config.server} shows no certificate that this site trusts: {error.verify_message}"
        )
        return
    except (OSError, ValueError, http.client.HTTPException) as error:  # a name that can be none is a ValueError
        yield Found(
            "server", "not ready", f"{config.server} can't be reached ({error}): is it running, is a firewall between?"
        )
        return
    finally:
        connection.close()
    yield Found("server", "ok" if answer.status == 200 else "warning", f"{config.server} answers ({answer.status})")
    days = (ends - time.time()) / 86400
    status: Status = "ok" if days > RENEW_DAYS else "warning"
    yield Found(
        "certificate",
        status,
        f"of the server: valid, ends in {days:.0f} days, {time.strftime('%Y-%m-%d', time.gmtime(ends))}",
    )
    yield _clock(answer.getheader("Date"), here)


def _clock(date: str | None, here: float) -> Found:
    try:
        named = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Found("clock", "warning", "the server named no time to compare with")
    ahead = here - (named + COARSE_SECONDS)
    if ahead > AHEAD_SECONDS or ahead < -BEHIND_SECONDS:
        words = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's: it would turn this site away"
        return Found("clock", "not ready", f"{words}; set the time (NTP)")
    return Found("clock", "ok", f"within {max(2, math.ceil(abs(ahead)))} s of the server's")
