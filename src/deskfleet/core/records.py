"""The records of the store: all that a fleet remembers.

A record is a frozen value with an id that is unique within its kind. What is told by an agent
(`Facts`, `Report`) and what is decided by a broker (`Session`, `Server`) are records of
different kinds, so that a late report can never overwrite a decision. `Link` says which broker
holds a server's agent link; its revision is the fence for everything that arrives on that link.

Instants are aware UTC datetimes. Adding a field needs a default, so that older rows decode.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import msgspec

Revision: TypeAlias = int
Instant: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
Int32: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What an agent tells is bounded by what clients can read."""
MOST_CHARACTERS = 4096
"""Of a text that an agent tells or a client asks for, where nothing else is said of it. Whoever
takes it in checks that; what is stored was let in once, and has no limit any more."""


class Type(StrEnum):
    CONSOLE = "CONSOLE"
    VIRTUAL = "VIRTUAL"


class Intent(StrEnum):
    """What we want of a session."""

    RUN = "RUN"
    STOP = "STOP"


class Phase(StrEnum):
    """What a server last said of a session."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    FAILED = "FAILED"
    """It never ran: the start failed, and nothing of it is left."""
    ENDED = "ENDED"
    """It ran once, or was never begun, and nothing of it is left."""


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all values that are stored or sent."""


class SessionRequest(Frozen, frozen=True):
    """What a client asked for, kept whole: it is what a server is given, and a retry needs it."""

    name: str
    owner: str
    type: Type
    dcv_gl_enabled: bool | None = None
    max_concurrent_clients: int | None = None
    init_file: str | None = None
    autorun_file: str | None = None
    autorun_file_arguments: tuple[str, ...] = ()
    permissions_file: str | None = None
    """As the client sent it: the base64 of a permissions file (see permissions.py)."""
    requirements: str | None = None
    enqueue: bool = False
    disable_retry: bool = False
    storage_root: str | None = None


class Session(Frozen, frozen=True, tag="session"):
    """Our half of a session: what was asked for and what we decided."""

    id: str
    request: SessionRequest
    created_at: Instant
    intent: Intent = Intent.RUN
    server_id: str | None = None
    """Where it is placed; None while it waits for a place."""
    generation: int = 0
    """Grows with each placement; a report of another generation is not about this one."""
    tried: tuple[str, ...] = ()
    """Servers on which a start has failed, oldest first."""
    released_at: Instant | None = None
    """When the last of these starts failed: since then it waits, if it does."""
    adopted: bool = False
    """Found running on its server; we did not create it."""
    local_id: str | None = None
    """What its server calls it, where that is not `id`: another server's has that id already."""
    ended_at: Instant | None = None
    """Set once, when nothing of it is left: the session is DELETED."""
    reason: str | None = None


class Report(Frozen, frozen=True, tag="report"):
    """A server's half of a session: what its agent last said of it. The id is the session's."""

    id: str
    server_id: str
    generation: Int64
    phase: Phase
    reason: str | None = None
    connections: Int64 = 0
    visitors: tuple[str, ...] = ()
    """The user of each of these connections, as far as the server says."""
    last_disconnection_at: Instant | None = None


class Server(Frozen, frozen=True, tag="server"):
    """Our half of a server. Placing on it and closing it rewrite this record, so that they race."""

    id: str
    registered_at: Instant
    open: bool = True
    placements: int = 0
    """How often a session was placed here; the revision that it moves guards the seats."""
    listed: bool = True
    """False once it was silent for so long that it is as if it weren't there: for clients and for
    placing. Its next link takes that back."""


class Link(Frozen, frozen=True, tag="link"):
    """Which broker holds the agent link of a server. The id is the server's."""

    id: str
    broker_id: str
    epoch: int
    up: bool = True


class Endpoint(Frozen, frozen=True):
    ip_address: str
    port: Int32
    web_url_path: str | None = "/"
    protocol: str = "HTTP"


class Os(Frozen, frozen=True):
    family: str
    name: str | None = None
    version: str | None = None
    kernel_version: str | None = None
    build_number: str | None = None


class Aws(Frozen, frozen=True):
    region: str | None = None
    instance_type: str | None = None
    instance_id: str | None = None
    image_id: str | None = None


class Cpu(Frozen, frozen=True):
    vendor: str | None = None
    model_name: str | None = None
    architecture: str | None = None
    number_of_cpus: Int32 | None = None
    physical_cores_per_cpu: Int32 | None = None


class Gpu(Frozen, frozen=True):
    vendor: str | None = None
    model_name: str | None = None


class Host(Frozen, frozen=True):
    """The machine under a server. Sizes are bytes; loads are averages of 1, 5 and 15 minutes."""

    os: Os
    memory_total: Int64
    memory_used: Int64
    swap_total: Int64 = 0
    swap_used: Int64 = 0
    cpu: Cpu = Cpu()
    load: tuple[float, float, float] | None = None
    gpus: tuple[Gpu, ...] = ()
    logged_in_users: tuple[str, ...] = ()
    aws: Aws | None = None


class Facts(Frozen, frozen=True, tag="facts"):
    """What an agent says of its server. The id is the server's."""

    id: str
    hostname: str
    ip: str
    host: Host
    driver: str
    version: str
    """Version of what runs the sessions (for xvnc: that of Xvnc)."""
    agent_version: str
    boot_id: str
    dns_name: str | None = None
    endpoints: tuple[Endpoint, ...] = ()
    tags: dict[str, str] = {}
    types: tuple[Type, ...] = (Type.VIRTUAL,)
    max_virtual_sessions: Int64 = -1
    """-1 is no limit."""
    max_sessions_per_user: Int64 = -1
    unhealthy: str | None = None
    """Why the driver can't serve sessions now; None when it can."""
    foreign_user: str | None = None
    """Windows: who is logged in by other means, and so blocks the console session."""


class Broker(Frozen, frozen=True, tag="broker"):
    """A broker. `beat` grows every few seconds; readers time it with their own clocks."""

    id: str
    url: str
    """Where other brokers reach it: its agent port."""
    beat: int = 0
    retired: bool = False
    """It was stopped in order. The links that it held have their grace, as those of a dead one."""


class ApiClient(Frozen, frozen=True, tag="api-client"):
    """Who may use the API. `secret_hash` is an HMAC under a key that is not in the store."""

    id: str
    name: str
    secret_hash: bytes
    created_at: Instant
    active: bool = True
    token_era: int = 0
    """Grows to end all tokens that were given: each of them names its era."""
    scopes: tuple[str, ...] = ()
    """What it may call (see access.py); none is all."""
    owner: str | None = None
    """Whose sessions alone there are for it."""


class AgentClient(Frozen, frozen=True, tag="agent-client"):
    """The credentials of one agent. Its id is the id of its server."""

    id: str
    name: str
    secret_hash: bytes
    created_at: Instant
    active: bool = True
    token_era: int = 0
    """As that of `ApiClient`."""


class SoftwareStatement(Frozen, frozen=True, tag="software-statement"):
    """What lets a new agent enrol. The id is the statement's public id."""

    id: str
    statement_hash: bytes
    issued_at: Instant
    active: bool = True
    sealed: bytes | None = None
    """Its text, encrypted outside of the store; older statements have none."""


class SigningKey(Frozen, frozen=True, tag="signing-key"):
    """A key that signs tokens. The id is the `kid`; `sealed` is encrypted outside of the store."""

    id: str
    public_pem: str
    sealed: bytes
    created_at: Instant


class AuthServer(Frozen, frozen=True, tag="auth-server"):
    """An external authorization server whose tokens open the API. The id is its JWKS URL."""

    id: str
    registered_at: Instant
    algorithm: str | None = None
    """The one algorithm of its tokens; None for the usual one of each key's kind."""
    issuer: str | None = None
    audience: str | None = None
    scope: str | None = None
    """Words with spaces between them; a token must have them all."""
    allow_private: bool = False
    """Whether its host may have a private address."""


class ServerIdType(StrEnum):
    """By what a DNS mapping knows its server; the words of the original's files."""

    ID = "Id"
    IP = "Ip"
    EC2_INSTANCE_ID = "Host.Aws.Ec2InstanceId"


class DnsMapping(Frozen, frozen=True, tag="dns-mapping"):
    """By which DNS names a server is reached. The id is made of type and value: see `dns_names`."""

    id: str
    server_id_type: ServerIdType
    server_id: str
    internal_name: str
    """What connection gateways connect to."""
    external_name: str | None = None


class TokenUse(Frozen, frozen=True, tag="token-use"):
    """That a connection token has opened its session. The id is the token's own (`jti`)."""

    id: str
    expires_at: Instant
    """When the token does; the record is of no use long after."""
    client_address: str | None = None
    """From where alone it may be used again; None where its server didn't say."""


Record: TypeAlias = (
    Session
    | Report
    | Server
    | Link
    | Facts
    | Broker
    | ApiClient
    | AgentClient
    | SoftwareStatement
    | SigningKey
    | AuthServer
    | DnsMapping
    | TokenUse
)

KINDS: dict[str, Any] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        Session,
        Report,
        Server,
        Link,
        Facts,
        Broker,
        ApiClient,
        AgentClient,
        SoftwareStatement,
        SigningKey,
        AuthServer,
        DnsMapping,
        TokenUse,
    )
}

KIND_OF: dict[type, str] = {kind: name for name, kind in KINDS.items()}


def kind_of(record: Record) -> str:
    return KIND_OF[type(record)]
