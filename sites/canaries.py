"""The canaries that a site plants in a run, by its own policy; no message asks for them or tells of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.data.crafted import crafted, some_of
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.messages import Request
from fedmedgen.federation.plan import SEGMENTER
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.canary_record import CanaryRecord
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings

logger = logging.getLogger(__name__)
Run = Callable[[LocalRound, CaseSet], LocalResult]


@dataclass(frozen=True)
class Planting:
    """One round's canaries: images are cases beside the patients', directions join the sums themselves."""

    record: CanaryRecord
    request: Request
    kind: str

    @classmethod
    def of(cls, policy: SitePolicy, folder: Path, request: Request, stream: Stream) -> "Planting | None":
        """None where the policy plants none; else the run's coins are on disk when this returns."""
        if not policy.audit_canaries:
            return None
        record = CanaryRecord.of(folder, request.run)
        record.plant(run=request.run, kind=policy.audit_kind, count=policy.audit_canaries, stream=stream)
        return cls(record, request, str(record.read()["kind"]))

    def run(self, run: Run, asked: LocalRound, cases: CaseSet) -> LocalResult:
        """The round with the canaries in it.

        **Guarantee** Which canaries take part, and how, depends on no patient: they are there when all patients' data
        fail, too.
        """
        if self.kind == "images":
            made = [] if asked.stage.name == SEGMENTER else self._images(asked.settings)  # no attack reads a segmenter
            return run(asked, cases.with_cases([*cases, *made]))
        planted = self.record.planted(asked.stage.name, asked.round)
        result = run(replace(asked, canaries=planted), cases)
        try:
            self.record.keep(self.request.digest, asked.stage.name, planted.scores)
        except Exception:  # the round is as good without them
            logger.exception("the canaries' scores can't be kept; an audit will lack them")
        return result

    def _images(self, settings: Settings) -> list[Case]:
        known = self.record.read()
        made = crafted(
            known["count"], seed=known["seed"], num_classes=len(settings.data.classes),
            num_masks=len(settings.data.mask_classes), size=settings.data.size,
        )  # fmt: skip
        return some_of(made, known["included"])
