"""A site: its policy, its cases, its ledger, and what it does when it is asked for a round."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedmedgen.data import holdout
from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import EgressError, PolicyError
from fedmedgen.federation import egress, local_round, local_statistics, plan, records
from fedmedgen.federation.egress import Checked, Reply
from fedmedgen.federation.holdout_record import HoldoutRecord
from fedmedgen.federation.local_round import LocalResult, LocalRound
from fedmedgen.federation.messages import Request
from fedmedgen.federation.policy import SitePolicy, check_plan, check_request
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_key, load_or_create_key
from fedmedgen.privacy.new_ledger import require_made
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.shared_noise import SharedNoise
from fedmedgen.settings import RuntimeSettings, Settings
from sites.canaries import Planting
from sites.checks import Shapes, check_arrays, check_public, check_round, expected_of
from sites.personal import PersonalLayers
from sites.public_arrays import PublicArrays
from sites.replies import ReplyStore
from sites.selfcheck import check_once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One site as its own file describes it; `load` reads the cases only when a request has passed the policy."""

    policy: SitePolicy
    load: Callable[[Settings], CaseSet]

    @property
    def folder(self) -> Path:
        return Path(self.policy.folder)

    def ledger(self) -> Ledger:
        """The site's one ledger; a simulated site makes its own.

        **Raises** `LedgerError` where a real site's key, ledger or head isn't there: a person made them.
        """
        path, key, head = self.policy.ledger_path, self.policy.key_path, self.policy.head_path
        if not self.policy.simulation:
            require_made(path, key_path=key, head_path=head)
            return Ledger(path, key=load_key(key), head_path=head, made=True)
        return Ledger(path, key=load_or_create_key(key), head_path=head)

    def introduce(self, settings: Settings) -> Checked:
        """The site's name and public counts, after the request has passed the policy."""
        check_request(self.policy, settings, parameters=0, stage=plan.stages(settings)[0].name)
        reply = Reply(
            config={
                records.SITE: self.policy.site,
                records.STATUS: records.DONE,
                records.UNIT: self.policy.unit,
                records.SIMULATION: "yes" if self.policy.simulation else "no",
            },
            metrics={
                records.PATIENTS: float(self.policy.patients_declared),
                records.LABELLED: float(self.policy.labelled_declared),
            },
        )
        return self._let_out(reply, {}, plan.GENERATOR)

    def train(self, request: Request) -> Checked:
        """One round: policy, replay or reservation, local round, egress, stored reply.

        **Guarantee** the spend is on disk before a case is touched; the same request gets the same bytes free. After
        the spend a fault at a real site yields a reply of pure noise: whether it occurred may depend on patients.
        """
        settings = request.settings
        sent = sum(array.size for arrays in (request.arrays, request.public_arrays) for array in arrays.values())
        check_request(self.policy, settings, parameters=sent, stage=request.stage)
        check_round(request)
        if settings.federation.shared:
            raise PolicyError("the study is of secure sums: a site sends nothing of its own outside their phases")
        expected = expected_of(self.policy, request)
        check_arrays(request, expected)
        public = PublicArrays(self.folder / "public")
        public.keep(request)
        replies = ReplyStore(self.folder / "replies")
        ledger = self.ledger() if settings.private else None
        with replies.turn(request.digest):
            stored = self._stored(request, replies, expected.answer, ledger)
            if stored is not None:
                return stored
            request = public.complete(request)
            check_public(request.public_arrays, expected)
            return self._answered(request, replies, expected.answer, ledger)

    def _stored(self, request: Request, replies: ReplyStore, expected: Shapes, ledger: Ledger | None) -> Checked | None:
        """The reply to the same request, if one is stored, paid, and may leave under the policy as it is now."""
        digest = request.digest
        stored = replies.paid(digest, ledger) if ledger else replies.find(digest)
        if stored is None:
            return None
        try:
            checked = self._let_out(stored, expected, request.stage)
        except EgressError as error:
            logger.warning(
                "the stored reply to %s may not leave any more, so asking is a new spend: %s", digest[:12], error
            )
            return None
        logger.info("site %s: request %s answered from its store", self.policy.site, digest[:12])
        return checked

    def _answered(self, request: Request, replies: ReplyStore, expected: Shapes, ledger: Ledger | None) -> Checked:
        """Agree, note what audits need, spend, compute, check, store, note."""
        agreed = self._agree(request, ledger) if ledger else None
        planting = Planting.of(self.policy, self.folder, request, self._stream(request, "canaries"))
        HoldoutRecord.of(self.folder, request.run).note(self.policy.audit_holdout, self._holdout_key(request.settings))
        if ledger and agreed:
            self._reserve(request, ledger, agreed)
        self._rehearse_fault(request)
        checked = self._let_out(self._round(request, agreed, planting), expected, request.stage)
        seal = replies.store(request.digest, checked)
        if ledger:
            ledger.complete(request.digest, seal)
        return checked

    def _let_out(self, reply: Reply, expected: Shapes, stage: str) -> Checked:
        public = self.policy.public(stage)
        return egress.check(reply, public=public, expected=expected, simulation=self.policy.simulation)

    def _agree(self, request: Request, ledger: Ledger, shared: SharedNoise | None = None) -> Plan:
        """The plan of the mechanism asked for, if it is allowed and there is room for it."""
        settings, policy = request.settings, self.policy
        agreed = plan.plan(
            settings,
            noise=request.noise_multiplier,
            patients=policy.patients_declared,
            labelled=policy.labelled_declared,
            statistics_noise=request.statistics_noise,
            shared=shared,
        )
        check_plan(policy, agreed)
        plan.check_claim(settings, agreed)
        spending = ledger.spent()
        if not spending.has_plan(request.run, agreed.digest):  # nothing is computed for a plan that has no room
            spending.refuse_if_closed()
            spending.refuse_beyond(self._limit, epsilon=agreed.epsilon, delta=agreed.delta)
            spending.refuse_alone_beyond(self._limit, alone=agreed.epsilon_alone)
        if request.stage != plan.STATISTICS:  # which take no gradients
            check_once(self.folder / "selfcheck", policy.on_own_machine(settings), request.stage)
        return agreed

    def _reserve(self, request: Request, ledger: Ledger, agreed: Plan, name: str = "") -> None:
        """Fix the plan, and spend the whole round before it starts; `name`: the spend's, where not the request's."""
        name = name or request.digest
        if ledger.find(name) == "reserved" and self.policy.simulation:
            return  # the same seeded bytes again: the same release, not a second one
        ledger.open_plan(
            run=request.run,
            digest=agreed.digest,
            mapping=agreed.to_mapping(),
            epsilon=agreed.epsilon,
            delta=agreed.delta,
            limit=self._limit,
            alone=agreed.epsilon_alone if agreed.shared else None,
        )
        steps = plan.stage_named(request.settings, request.stage).steps
        ledger.reserve(run=request.run, plan_digest=agreed.digest, stage=request.stage, steps=steps, request=name)

    @property
    def _limit(self) -> Limit:
        alone = self.policy.secure_sum.lifetime_epsilon_alone or None
        return Limit(epsilon=self.policy.lifetime_epsilon, delta=self.policy.lifetime_delta, alone=alone)

    def _round(self, request: Request, agreed: Plan | None, planting: Planting | None) -> Reply:
        settings = self.policy.on_own_machine(request.settings)
        stage = plan.stage_named(settings, request.stage)
        mechanism = None if agreed is None else next(item for item in agreed.stages if item.name == stage.name)
        if mechanism is None and not self.policy.simulation:
            raise PolicyError("without a mechanism only a simulation may answer")
        personal = PersonalLayers.of(self.folder, request)
        asked = LocalRound(
            settings, stage, request.round, mechanism, request.proximal_mu,
            public=request.public_arrays, personal=personal.before(request.round),
        )  # fmt: skip
        run = local_statistics.run if stage.name == plan.STATISTICS else local_round.run

        def answer(asked: LocalRound, cases: CaseSet) -> LocalResult:
            return run(asked, request.arrays, cases, stream=self._stream(request))

        with_canaries = answer if planting is None else partial(planting.run, answer)
        cases = self.load(settings)
        try:
            result = with_canaries(asked, self._taking_part(cases, settings))
        except Exception:
            if self.policy.simulation or mechanism is None:
                raise
            logger.exception("site %s: the round failed; the reply is noise", self.policy.site)
            on_cpu = replace(asked, settings=replace(settings, runtime=RuntimeSettings(device="cpu")))
            result = with_canaries(on_cpu, cases.with_cases([]))
        personal.keep(request.round, result.personal)
        metrics = {records.WEIGHT: float(self._declared(stage.name))}
        if self.policy.simulation and result.loss is not None:
            metrics[records.LOSS] = result.loss
        return Reply(
            config={records.SITE: self.policy.site, records.STATUS: records.DONE},
            metrics=metrics,
            arrays=result.arrays,
        )

    def _declared(self, stage: str) -> int:
        return self.policy.labelled_declared if stage == plan.SEGMENTER else self.policy.patients_declared

    def _taking_part(self, cases: CaseSet, settings: Settings) -> CaseSet:
        """The site's cases less the patients that it holds out for audits."""
        share = self.policy.audit_holdout
        return holdout.split(cases, share, self._holdout_key(settings))[0] if share else cases

    def _holdout_key(self, settings: Settings) -> bytes:
        return holdout.simulated_key(settings.seed) if self.policy.simulation else load_key(self.policy.key_path)

    def _stream(self, request: Request, *names: str) -> Stream:
        if self.policy.simulation:
            return Stream.seeded(request.settings.seed, self.policy.site, request.digest, *names)
        return Stream.system()

    def _rehearse_fault(self, request: Request) -> None:
        fault = request.settings.fault
        here = fault.site == self.policy.site and fault.round == request.round and request.stage == plan.GENERATOR
        if self.policy.simulation and here:
            raise RuntimeError(f"rehearsed fault at {fault.site} in round {fault.round}")
