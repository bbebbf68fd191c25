"""The scaler: at each tick it looks at every group that has a rule, several at a time.

A group is looked at by one process at a time (``turn.py``). One that is slow or broken delays no other: a tick does
not wait for it, and groups whose last look was in vain share two threads of their own. Of a container group that
SaladCloud does not know the rule is paused, after three looks in a row, loudly; it is never deleted. Where nothing
scales a group any more, its workers drain no more. A group whose workers were told to drain is looked at again after
``LOOK_AGAIN_S``: they have settled by then, and a whole interval of idle nodes is saved.

Limits: threads of one process; the ledger keeps what must outlive it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import (
    KelpieError,
    LedgerRefused,
    LedgerUnavailable,
    SaladError,
    SaladNotFound,
    SaladUnavailable,
    SettingsError,
)
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_scaler.care import NodeCare
from kelpie_scaler.decision import LOOK_AGAIN_S
from kelpie_scaler.decision import decide as default_decide
from kelpie_scaler.history import trouble
from kelpie_scaler.looking import Decide, Look
from kelpie_scaler.salad import Group, Place, SaladClient
from kelpie_scaler.salad.transport import Transport
from kelpie_scaler.turn import Turn, TurnLost

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

AT_ONCE = 8
TROUBLED_AT_ONCE = 2
TICK_WAIT_S = 20.0
"""A tick waits for its looks at most so long; the others go on by themselves."""

MISSING_LOOKS = 3


def in_a_while(delay_s: float, act: Callable[[], None]) -> None:
    """Call something later, from a thread of its own; never, should the process end before."""
    timer = threading.Timer(delay_s, act)
    timer.daemon = True
    timer.start()


class Scaler:
    """Scales the groups that have rules; ``tick`` does one round."""

    def __init__(
        self, app: KelpieApp, client: SaladClient | None = None, *, decide: Decide = default_decide,
        clock: Clock | None = None, later: Callable[[float, Callable[[], None]], None] = in_a_while,
    ) -> None:  # fmt: skip
        self._app, self._clock, self._decide, self._later = app, clock or SystemClock(), decide, later
        self._closed = False
        self._client = client or client_of(app, self._clock)
        self._care = NodeCare(app.ledger, app.settings, self._clock)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kelpie-scale")
        self._sick_bay = ThreadPoolExecutor(TROUBLED_AT_ONCE, thread_name_prefix="kelpie-scale-troubled")
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._troubled: set[str] = set()
        self._said_off = False

    def close(self) -> None:
        """Begin no more looks."""
        with self._lock:
            self._closed = True
        for pool in (self._pool, self._sick_bay):
            pool.shutdown(wait=False, cancel_futures=True)

    def tick(self, wait_s: float = TICK_WAIT_S) -> None:
        """Look at every group that has a rule.

        Raises:
            LedgerUnavailable: Redis is away.
        """
        if self._client is None:
            if not self._said_off:
                self._said_off = True
                log.info("scaling is off: SALAD_API_KEY is not set", extra={"action": "scaling_off"})
            return
        rules = [rule for rule in Rules(self._app.ledger.redis).all() if not rule.paused]
        self._let_go({rule.container_group_id for rule in rules})
        begun = [future for rule in rules if (future := self._begin(rule, self._client))]
        wait(begun, timeout=wait_s)

    def _let_go(self, scaled: set[str]) -> None:
        """Take back the drains of groups whose rule is paused or gone: nobody else would."""
        ledger = self._app.ledger
        for group in ledger.groups():
            if group in scaled:
                continue
            try:
                if ledger.workers(group).facts.draining:
                    ledger.drain(group, 0)
            except LedgerRefused as e:
                # A group's workers may write its keys: what they spoil must not stop the scaling of others.
                log.warning(
                    "the workers of a group cannot be read",
                    extra={"action": "workers_refused", "container_group": group, "error": str(e)},
                )

    def _begin(self, rule: ScalingRule, client: SaladClient) -> Future[None] | None:
        group = rule.container_group_id
        with self._lock:
            before = self._under_way.get(group)
            if self._closed or (before is not None and not before.done()):
                return None
            pool = self._sick_bay if group in self._troubled else self._pool
            future = self._under_way[group] = pool.submit(self._safely, rule, client)
        return future

    def _safely(self, rule: ScalingRule, client: SaladClient) -> None:
        group, well = rule.container_group_id, True
        try:
            self._look(rule, client)
        except TurnLost as e:
            log.warning("scaling was given up", extra={"action": "turn_lost", "container_group": group, "why": str(e)})
        except LedgerUnavailable as e:
            log.warning("scaling waits for Redis", extra={"action": "scale_away", "error": str(e)})
        except KelpieError as e:
            well = not isinstance(e, SaladUnavailable)
            self._note_trouble(rule, e)
        except Exception:
            well = False
            log.exception("scaling a group failed", extra={"action": "scale_failed", "container_group": group})
        with self._lock:
            (self._troubled.discard if well else self._troubled.add)(group)

    def _look(self, rule: ScalingRule, client: SaladClient) -> None:
        ledger, group = self._app.ledger, rule.container_group_id
        turn = Turn(ledger, group, self._clock)
        if not turn.acquire():
            return
        try:
            acting = client.acting_while(turn.check)
            place = self._place(rule, acting)
            look = Look(ledger, rule, place, acting, self._decide, ledger.server_time())
            seen = look.run()
            ledger.note(group, "missing", "")
            if look.drained and self._app.settings.scale_interval_s > LOOK_AGAIN_S:
                self._later(LOOK_AGAIN_S, lambda: self._look_again(group, client))
            self._look_after(group, place, seen, acting)
        except SaladNotFound as e:
            self._missing(rule, e)
        finally:
            turn.release()

    def _look_again(self, group: str, client: SaladClient) -> None:
        try:
            rule = Rules(self._app.ledger.redis).get(group)
        except KelpieError as e:
            # The next tick sees to it.
            log.warning("scaling waits for Redis", extra={"action": "scale_away", "error": str(e)})
            return
        if rule is not None and not rule.paused:
            self._begin(rule, client)

    def _look_after(self, group_id: str, place: Place, group: Group, client: SaladClient) -> None:
        try:
            self._care.look(group_id, place, group, client)
        except SaladError as e:
            # The group was scaled; its nodes are looked at again with the next tick.
            log.warning(
                "the nodes could not be looked after",
                extra={"action": "care_trouble", "container_group": group_id, "error": str(e)},
            )

    # -- where a group is -----------------------------------------------------------------------------------------

    def _place(self, rule: ScalingRule, client: SaladClient) -> Place:
        """Where the group is; its name is looked up once, by its id."""
        settings, ledger, group = self._app.settings, self._app.ledger, rule.container_group_id
        organization, project = rule.organization or settings.organization, rule.project or settings.project
        if not organization or not project:
            raise SettingsError(
                f"the rule of container group {group} names no organization and project, and the control worker's "
                "SALAD_ORGANIZATION_NAME and SALAD_PROJECT_NAME are not both set; set them, or name them in the rule"
            )
        place = Place(organization, project, rule.group_name or ledger.noted(group, "name"))
        if not place.group:
            found = client.find_group(place, group)
            ledger.note(group, "name", found.name)
            place = Place(organization, project, found.name)
        return place

    # -- what goes wrong ------------------------------------------------------------------------------------------

    def _missing(self, rule: ScalingRule, error: SaladNotFound) -> None:
        """SaladCloud says that there is no such group: once proves nothing, three looks in a row do."""
        ledger, group = self._app.ledger, rule.container_group_id
        ledger.note(group, "name", "")  # the next look finds it by its id, should it have another one
        looks = int(ledger.noted(group, "missing") or 0) + 1
        if looks < MISSING_LOOKS:
            ledger.note(group, "missing", str(looks))
            self._note_trouble(rule, error)
            return
        ledger.note(group, "missing", "")
        Rules(ledger.redis).pause(group)
        said = f"{error} (not found {looks} times in a row); the rule is paused, 'kelpie rules resume {group}' goes on"
        entry, same = trouble(said, kind="suspended")
        ledger.keep_decision(group, entry, same=same)
        log.error(
            "SaladCloud does not know this container group; its rule is paused, and nothing scales it any more",
            extra={"action": "rule_suspended", "container_group": group, "why": said},
        )

    def _note_trouble(self, rule: ScalingRule, error: KelpieError) -> None:
        group = rule.container_group_id
        log.warning(
            "a container group could not be scaled",
            extra={"action": "scale_trouble", "container_group": group, "error": str(error)},
        )
        entry, same = trouble(str(error))
        try:
            self._app.ledger.keep_decision(group, entry, same=same)
        except LedgerUnavailable:
            log.debug("trouble was not kept", extra={"action": "trouble_unkept", "container_group": group})


def client_of(app: KelpieApp, clock: Clock | None = None) -> SaladClient | None:
    """A client by the settings; None without a key."""
    settings = app.settings
    if settings.salad_api_key is None:
        return None
    return SaladClient(Transport(settings.salad_api_url, settings.salad_api_key, app.ledger, clock=clock))
