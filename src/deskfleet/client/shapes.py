"""The schemas of the API as a client sees them: what it sends and what it is told.

Names and members are those of the API's description (`/dcv-session-manager-api.yaml`), in its
order, in snake_case here and PascalCase on the wire. Older and other brokers leave members out:
what is not sure to be there is optional, and members that are not known here are ignored.

Must not: hold behaviour beyond naming the subject of a refusal.
"""

from __future__ import annotations

from datetime import datetime

import msgspec


class Sent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """The base of what is sent; None is left out."""


class Told(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The base of what is received."""


class KeyValuePair(Sent, frozen=True):
    key: str
    value: str


class DescribeSessionsRequestData(Sent, frozen=True):
    session_ids: tuple[str, ...] | None = None
    filters: tuple[KeyValuePair, ...] | None = None
    max_results: int | None = None
    next_token: str | None = None


class DescribeServersRequestData(Sent, frozen=True):
    server_ids: tuple[str, ...] | None = None
    max_results: int | None = None
    next_token: str | None = None


class CreateSessionRequestData(Sent, frozen=True):
    """`permissions_file` is the base64 of one; `type` is CONSOLE or VIRTUAL."""

    name: str | None = None
    owner: str | None = None
    type: str | None = None
    dcv_gl_enabled: bool | None = None
    max_concurrent_clients: int | None = None
    init_file_path: str | None = None
    init_file: str | None = None
    autorun_file: str | None = None
    autorun_file_arguments: tuple[str, ...] | None = None
    permissions_file: str | None = None
    requirements: str | None = None
    enqueue_request: bool | None = None
    disable_retry_on_failure: bool | None = None
    storage_root: str | None = None


class DeleteSessionRequestData(Sent, frozen=True):
    session_id: str
    owner: str
    force: bool | None = None


class UpdateSessionPermissionsRequestData(Sent, frozen=True):
    session_id: str
    owner: str
    permissions_file: str


class GetSessionScreenshotRequestData(Sent, frozen=True):
    session_id: str | None = None
    max_width: int | None = None
    max_height: int | None = None


class OpenServerRequestData(Sent, frozen=True):
    server_id: str | None = None


class CloseServerRequestData(Sent, frozen=True):
    server_id: str | None = None
    force: bool | None = None


class Endpoint(Told, frozen=True):
    ip_address: str | None = None
    port: int | None = None
    web_url_path: str | None = None
    protocol: str | None = None


class Os(Told, frozen=True):
    family: str | None = None
    name: str | None = None
    version: str | None = None
    kernel_version: str | None = None
    build_number: str | None = None


class Memory(Told, frozen=True):
    total_bytes: int
    used_bytes: int


class Swap(Told, frozen=True):
    total_bytes: int
    used_bytes: int


class Aws(
    Told,
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


class CpuInfo(Told, frozen=True):
    vendor: str | None = None
    model_name: str | None = None
    architecture: str | None = None
    number_of_cpus: int | None = None
    physical_cores_per_cpu: int | None = None


class CpuLoadAverage(Told, frozen=True):
    one_minute: float | None = None
    five_minutes: float | None = None
    fifteen_minutes: float | None = None


class Gpu(Told, frozen=True):
    vendor: str | None = None
    model_name: str | None = None


class LoggedInUser(Told, frozen=True):
    username: str | None = None


class Host(Told, frozen=True):
    os: Os | None = None
    memory: Memory | None = None
    swap: Swap | None = None
    aws: Aws | None = None
    cpu_info: CpuInfo | None = None
    cpu_load_average: CpuLoadAverage | None = None
    gpus: tuple[Gpu, ...] = ()
    logged_in_users: tuple[LoggedInUser, ...] = ()


class Server(Told, frozen=True):
    id: str | None = None
    ip: str | None = None
    hostname: str | None = None
    default_dns_name: str | None = None
    port: str | None = None
    """A number, as text; `Endpoint.port` is a number."""
    endpoints: tuple[Endpoint, ...] = ()
    web_url_path: str | None = None
    version: str | None = None
    session_manager_agent_version: str | None = None
    availability: str | None = None
    unavailability_reason: str | None = None
    console_session_count: int | None = None
    virtual_session_count: int | None = None
    host: Host | None = None
    tags: tuple[KeyValuePair, ...] = ()


class Session(Told, frozen=True, kw_only=True):
    id: str
    name: str
    owner: str
    server: Server | None = None
    """None while it waits for a place."""
    type: str
    max_concurrent_clients: int | None = None
    state: str
    """CREATING, READY, DELETING, DELETED or UNKNOWN."""
    substate: str | None = None
    state_reason: str | None = None
    creation_time: datetime | None = None
    last_disconnection_time: datetime | None = None
    num_of_connections: int | None = None
    storage_root: str | None = None


class DescribeSessionsResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    sessions: tuple[Session, ...]
    next_token: str | None = None


class DescribeServersResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    servers: tuple[Server, ...]
    next_token: str | None = None


class UnsuccessfulCreateSessionRequestData(Told, frozen=True):
    create_session_request_data: CreateSessionRequestData
    failure_reason: str

    @property
    def subject(self) -> str:
        return self.create_session_request_data.name or ""


class CreateSessionsResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[Session, ...]
    unsuccessful_list: tuple[UnsuccessfulCreateSessionRequestData, ...]


class DeleteSessionSuccessfulResponse(Told, frozen=True, kw_only=True):
    session_id: str
    state: str


class UnsuccessfulSession(Told, frozen=True, kw_only=True):
    """What deletions and changes of permissions have in common where they fail."""

    session_id: str | None = None
    failure_reason: str

    @property
    def subject(self) -> str:
        return self.session_id or ""


class DeleteSessionsResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[DeleteSessionSuccessfulResponse, ...]
    unsuccessful_list: tuple[UnsuccessfulSession, ...]


class UpdateSessionPermissionsSuccessfulResponse(Told, frozen=True, kw_only=True):
    session_id: str


class UpdateSessionPermissionsResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[UpdateSessionPermissionsSuccessfulResponse, ...]
    unsuccessful_list: tuple[UnsuccessfulSession, ...]


class GetSessionConnectionDataResponse(Told, frozen=True, kw_only=True):
    session: Session
    connection_token: str


class SessionScreenshotImage(Told, frozen=True):
    format: str
    """`png` or `jpeg`."""
    data: bytes
    """Base64 on the wire."""
    creation_time: datetime | None = None
    primary: bool = False


class SessionScreenshot(Told, frozen=True):
    session_id: str
    images: tuple[SessionScreenshotImage, ...]


class GetSessionScreenshotSuccessfulResponse(Told, frozen=True, kw_only=True):
    session_screenshot: SessionScreenshot


class GetSessionScreenshotUnsuccessfulResponse(Told, frozen=True, kw_only=True):
    get_session_screenshot_request_data: GetSessionScreenshotRequestData
    failure_reason: str

    @property
    def subject(self) -> str:
        return self.get_session_screenshot_request_data.session_id or ""


class GetSessionScreenshotsResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[GetSessionScreenshotSuccessfulResponse, ...]
    unsuccessful_list: tuple[GetSessionScreenshotUnsuccessfulResponse, ...]


class OpenServerSuccessfulResponse(Told, frozen=True, kw_only=True):
    server_id: str


class OpenServerUnsuccessfulResponse(Told, frozen=True, kw_only=True):
    open_server_request_data: OpenServerRequestData
    failure_code: str | None = None
    failure_reason: str

    @property
    def subject(self) -> str:
        return self.open_server_request_data.server_id or ""


class OpenServersResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[OpenServerSuccessfulResponse, ...]
    unsuccessful_list: tuple[OpenServerUnsuccessfulResponse, ...]


class CloseServerSuccessfulResponse(Told, frozen=True, kw_only=True):
    server_id: str


class CloseServerUnsuccessfulResponse(Told, frozen=True, kw_only=True):
    close_server_request_data: CloseServerRequestData
    failure_code: str | None = None
    failure_reason: str

    @property
    def subject(self) -> str:
        return self.close_server_request_data.server_id or ""


class CloseServersResponse(Told, frozen=True, kw_only=True):
    request_id: str | None = None
    successful_list: tuple[CloseServerSuccessfulResponse, ...]
    unsuccessful_list: tuple[CloseServerUnsuccessfulResponse, ...]
