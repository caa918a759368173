"""All use cases of one broker, for its doors."""

from __future__ import annotations

from dataclasses import dataclass

from deskfleet.broker.service.access import Access
from deskfleet.broker.service.external_tokens import ExternalTokens
from deskfleet.broker.service.housekeeping import Housekeeping
from deskfleet.broker.service.links import Links
from deskfleet.broker.service.paging import Paging
from deskfleet.broker.service.replica import Replica
from deskfleet.broker.service.resolver import Resolver
from deskfleet.broker.service.screenshots import Screenshots
from deskfleet.broker.service.servers import Servers
from deskfleet.broker.service.sessions import Sessions
from deskfleet.broker.service.verifier import Verifier
from deskfleet.ports import Clock, Ids


@dataclass(frozen=True, slots=True)
class House:
    replica: Replica
    access: Access
    external: ExternalTokens
    sessions: Sessions
    verifier: Verifier
    resolver: Resolver
    servers: Servers
    screenshots: Screenshots
    links: Links
    housekeeping: Housekeeping
    paging: Paging
    clock: Clock
    ids: Ids
