"""The schemas of the API: what clients send (`Asked`) and what they are sent (`Answer`).

Each struct here is a schema of `dcv-session-manager-api.yaml` under the same name, member by
member; a test compares the two. `bodies.py` reads what clients send, `rendering.py` makes answers.

Laws: an answer never holds a member that the yaml lacks (typed clients throw on one), and members
without a default are always there (clients iterate over them unasked). The spelling on the wire is
fixed by the struct, never by a caller.

Must not: hold behaviour, look at the fleet, or know HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from deskfleet.broker.service.servers import Code
from deskfleet.core.records import Type
from deskfleet.core.server import Availability, Unavailability
from deskfleet.core.session import State, Substate

MAX_ENTRIES = 1_000
"""Of any list in a request."""

MAX_TEXT = 64 * 1024
"""Characters of any text in a request but a permissions file."""

MAX_FILE = 128 * 1024
"""Characters of a file in base64: more than a permissions file may have, so that one which is too
large is told so by its own rule."""

Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
File: TypeAlias = Annotated[str, Meta(max_length=MAX_FILE)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=MAX_ENTRIES)]
Int32: TypeAlias = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Float: TypeAlias = Annotated[float, Meta(extra_json_schema={"format": "float"})]
Instant: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
PageSize: TypeAlias = Annotated[int, Meta(ge=1, le=1_000)]

# What an answer says is written as it is given; these are for the description.
AvailabilityName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(Availability)})]
UnavailabilityName: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"enum": list(Unavailability)})
]
StateName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(State)})]
DeletedStateName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": [State.DELETING]})]
SubstateName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(Substate)})]
TypeName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(Type)})]
FailureCodeName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": list(Code)})]
ProtocolName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": ["HTTP", "QUIC"]})]
FormatName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": ["png", "jpeg"]})]
BearerName: TypeAlias = Annotated[str, Meta(extra_json_schema={"enum": ["Bearer"]})]


class Asked(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    rename="pascal",
    gc=False,
):
    """The base of what clients send. Null is as good as absent."""


class Answer(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal", gc=False
):
    """The base of what clients are sent."""


class KeyValuePair(Asked, frozen=True):
    """A filter, where a client sends it; a tag, where a server has it."""

    key: Text
    value: Text


class DescribeSessionsRequestData(Asked, frozen=True):
    session_ids: Texts | None = None
    filters: Annotated[tuple[KeyValuePair, ...], Meta(max_length=MAX_ENTRIES)] | None = None
    max_results: PageSize | None = None
    next_token: Text | None = None


class DescribeServersRequestData(Asked, frozen=True):
    server_ids: Texts | None = None
    max_results: PageSize | None = None
    next_token: Text | None = None


class CreateSessionRequestData(Asked, frozen=True):
    name: Text | None = None
    owner: Text | None = None
    type: Text | None = None
    dcv_gl_enabled: bool | None = None
    max_concurrent_clients: Int64 | None = None
    init_file_path: Text | None = None
    init_file: Text | None = None
    autorun_file: Text | None = None
    autorun_file_arguments: Texts | None = None
    permissions_file: File | None = None
    requirements: Text | None = None
    enqueue_request: bool | None = None
    disable_retry_on_failure: bool | None = None
    storage_root: Text | None = None


class DeleteSessionRequestData(Asked, frozen=True):
    session_id: Text | None = None
    owner: Text | None = None
    force: bool | None = None


class UpdateSessionPermissionsRequestData(Asked, frozen=True):
    session_id: Text | None = None
    owner: Text | None = None
    permissions_file: File | None = None


class GetSessionScreenshotRequestData(Asked, frozen=True):
    session_id: Text | None = None
    max_width: Int64 | None = None
    max_height: Int64 | None = None


class OpenServerRequestData(Asked, frozen=True):
    server_id: Text | None = None


class CloseServerRequestData(Asked, frozen=True):
    server_id: Text | None = None
    force: bool | None = None


class Error(Answer, frozen=True, rename=None):
    error: str


class OAuthError(Answer, frozen=True, rename=None):
    """RFC 6749, section 5.2."""

    error: str
    error_description: str | None = None


class AccessToken(Answer, frozen=True, rename=None):
    access_token: str
    token_type: BearerName
    expires_in: Int32
    """Seconds."""


class Endpoint(Answer, frozen=True):
    ip_address: str
    port: Int32
    protocol: ProtocolName
    web_url_path: str | None = None


class Os(Answer, frozen=True):
    family: str
    name: str | None = None
    version: str | None = None
    kernel_version: str | None = None
    build_number: str | None = None


class Memory(Answer, frozen=True):
    total_bytes: Int64
    used_bytes: Int64


class Swap(Answer, frozen=True):
    total_bytes: Int64
    used_bytes: Int64


class Aws(
    Answer,
    frozen=True,
    rename={
        "region": "Region",
        "ec2_instance_type": "EC2InstanceType",
        "ec2_instance_id": "EC2InstanceId",
        "ec2_image_id": "EC2ImageId",
    },
):
    region: str | None = None
    ec2_instance_type: str | None = None
    ec2_instance_id: str | None = None
    ec2_image_id: str | None = None


class CpuInfo(Answer, frozen=True):
    vendor: str | None = None
    model_name: str | None = None
    architecture: str | None = None
    number_of_cpus: int | None = None
    physical_cores_per_cpu: int | None = None


class CpuLoadAverage(Answer, frozen=True):
    one_minute: Float
    five_minutes: Float
    fifteen_minutes: Float


class Gpu(Answer, frozen=True):
    vendor: str | None = None
    model_name: str | None = None


class LoggedInUser(Answer, frozen=True):
    username: str


class Host(Answer, frozen=True):
    os: Os
    memory: Memory
    swap: Swap
    cpu_info: CpuInfo
    gpus: tuple[Gpu, ...]
    logged_in_users: tuple[LoggedInUser, ...]
    aws: Aws | None = None
    cpu_load_average: CpuLoadAverage | None = None


class Server(Answer, frozen=True):
    id: str
    ip: str
    hostname: str
    endpoints: tuple[Endpoint, ...]
    tags: tuple[KeyValuePair, ...]
    default_dns_name: str | None = None
    port: str | None = None
    web_url_path: str | None = None
    version: str | None = None
    session_manager_agent_version: str | None = None
    availability: AvailabilityName | None = None
    unavailability_reason: UnavailabilityName | None = None
    console_session_count: Int32 | None = None
    virtual_session_count: Int32 | None = None
    host: Host | None = None


class Session(Answer, frozen=True):
    id: str
    name: str
    owner: str
    type: TypeName
    state: StateName
    creation_time: Instant
    num_of_connections: Int64
    server: Server | None = None
    max_concurrent_clients: Int64 | None = None
    substate: SubstateName | None = None
    state_reason: str | None = None
    last_disconnection_time: Instant | None = None
    storage_root: str | None = None


class DescribeSessionsResponse(Answer, frozen=True):
    request_id: str
    sessions: Sequence[Session]
    next_token: str | None = None


class DescribeServersResponse(Answer, frozen=True):
    request_id: str
    servers: Sequence[Server]
    next_token: str | None = None


class UnsuccessfulCreateSessionRequestData(Answer, frozen=True):
    create_session_request_data: CreateSessionRequestData
    failure_reason: str


class CreateSessionsResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[Session]
    unsuccessful_list: Sequence[UnsuccessfulCreateSessionRequestData]


class DeleteSessionSuccessfulResponse(Answer, frozen=True):
    session_id: str
    state: DeletedStateName


class DeleteSessionUnsuccessfulResponse(Answer, frozen=True):
    failure_reason: str
    session_id: str | None = None


class DeleteSessionsResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[DeleteSessionSuccessfulResponse]
    unsuccessful_list: Sequence[DeleteSessionUnsuccessfulResponse]


class UpdateSessionPermissionsSuccessfulResponse(Answer, frozen=True):
    session_id: str


class UpdateSessionPermissionsUnsuccessfulResponse(Answer, frozen=True):
    failure_reason: str
    session_id: str | None = None


class UpdateSessionPermissionsResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[UpdateSessionPermissionsSuccessfulResponse]
    unsuccessful_list: Sequence[UpdateSessionPermissionsUnsuccessfulResponse]


class GetSessionConnectionDataResponse(Answer, frozen=True):
    session: Session
    connection_token: str


class SessionScreenshotImage(Answer, frozen=True):
    format: FormatName
    data: bytes
    """Base64 on the wire."""
    creation_time: Instant
    primary: bool


class SessionScreenshot(Answer, frozen=True):
    session_id: str
    images: tuple[SessionScreenshotImage, ...]


class GetSessionScreenshotSuccessfulResponse(Answer, frozen=True):
    session_screenshot: SessionScreenshot


class GetSessionScreenshotUnsuccessfulResponse(Answer, frozen=True):
    get_session_screenshot_request_data: GetSessionScreenshotRequestData
    failure_reason: str


class GetSessionScreenshotsResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[GetSessionScreenshotSuccessfulResponse]
    unsuccessful_list: Sequence[GetSessionScreenshotUnsuccessfulResponse]


class OpenServerSuccessfulResponse(Answer, frozen=True):
    server_id: str


class OpenServerUnsuccessfulResponse(Answer, frozen=True):
    open_server_request_data: OpenServerRequestData
    failure_code: FailureCodeName
    failure_reason: str


class OpenServersResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[OpenServerSuccessfulResponse]
    unsuccessful_list: Sequence[OpenServerUnsuccessfulResponse]


class CloseServerSuccessfulResponse(Answer, frozen=True):
    server_id: str


class CloseServerUnsuccessfulResponse(Answer, frozen=True):
    close_server_request_data: CloseServerRequestData
    failure_code: FailureCodeName
    failure_reason: str


class CloseServersResponse(Answer, frozen=True):
    request_id: str
    successful_list: Sequence[CloseServerSuccessfulResponse]
    unsuccessful_list: Sequence[CloseServerUnsuccessfulResponse]
