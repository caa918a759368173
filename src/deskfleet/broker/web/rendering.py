"""Answers, made: records of the core into the shapes of the API, and shapes into bytes.

Laws: what is not known is left out, never null or empty text (dateutil and Java throw on an empty
instant); instants are UTC with milliseconds and `Z`; `Server.Port` is text while `Endpoints[].Port`
is a number; the primary picture comes first and is the only primary one.

Must not: decide a state or an availability. It is given them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from starlette.responses import Response

from deskfleet.broker.web import shapes
from deskfleet.core import records
from deskfleet.ports import Picture

NO_STORE = {"Cache-Control": "no-store"}
"""For answers that hold a secret."""
_JSON_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

_encoder = msgspec.json.Encoder()


class SessionRows(shapes.Answer, frozen=True):
    """A `DescribeSessionsResponse` whose sessions were encoded before, alone or many together."""

    request_id: str
    sessions: Sequence[msgspec.Raw]
    next_token: str | None = None


def row(session: shapes.Session) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(session))


def join(rows: list[msgspec.Raw]) -> msgspec.Raw:
    """Join rows so that they can stand where one stands in a list."""
    return msgspec.Raw(b",".join(rows))


def encode(answer: shapes.Answer) -> bytes:
    return _encoder.encode(answer)


class Answered(Response):
    """An answer of the API, for nobody to keep: tokens and pictures are in some, and what a fleet
    is like grows old at once."""

    def __init__(self, answer: shapes.Answer) -> None:
        # Starlette would put the same headers together anew each time.
        self.status_code, self.background = 200, None
        self.body = encode(answer)
        self.raw_headers = [*_JSON_HEADERS, (b"content-length", b"%d" % len(self.body))]


def instant(at: datetime) -> str:
    """Print an aware instant as `2020-10-06T10:15:31.633Z`."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat("T", "milliseconds")[:-6] + "Z"


def session_shape(
    session: records.Session,
    *,
    state: str,
    substate: str | None,
    reason: str | None,
    report: records.Report | None,
    server: shapes.Server | None,
    user: str | None = None,
) -> shapes.Session:
    """Show a session. `server` is that of `session_server_shape`; make it once per server.

    Where `user` names somebody, the connections that are counted are theirs.
    """
    request = session.request
    left = report.last_disconnection_at if report else None
    return shapes.Session(
        id=session.id,
        name=request.name,
        owner=request.owner,
        type=request.type,
        state=state,
        creation_time=instant(session.created_at),
        num_of_connections=_connections(report, user) if report else 0,
        server=server,
        max_concurrent_clients=request.max_concurrent_clients,
        substate=substate,
        state_reason=reason,
        last_disconnection_time=instant(left) if left else None,
        storage_root=request.storage_root,
    )


def session_server_shape(facts: records.Facts) -> shapes.Server:
    """Show a server as a part of its sessions: what is needed to connect to it, and its tags."""
    entrance = _entrance(facts)
    return shapes.Server(
        id=facts.id,
        ip=facts.ip,
        hostname=facts.hostname,
        port=str(entrance.port) if entrance else None,
        web_url_path=(entrance.web_url_path or "/") if entrance else None,
        endpoints=_endpoints(facts),
        tags=_tags(facts),
    )


def server_shape(
    facts: records.Facts,
    *,
    availability: str,
    unavailability_reason: str | None,
    console_sessions: int,
    virtual_sessions: int,
) -> shapes.Server:
    """Show a server in full."""
    entrance = _entrance(facts)
    return shapes.Server(
        id=facts.id,
        ip=facts.ip,
        hostname=facts.hostname,
        default_dns_name=facts.dns_name,
        port=str(entrance.port) if entrance else None,
        web_url_path=(entrance.web_url_path or "/") if entrance else None,
        endpoints=_endpoints(facts),
        version=facts.version,
        session_manager_agent_version=facts.agent_version,
        availability=availability,
        unavailability_reason=unavailability_reason,
        console_session_count=console_sessions,
        virtual_session_count=virtual_sessions,
        host=_host(facts.host),
        tags=_tags(facts),
    )


def screenshot_shape(
    session_id: str, pictures: Sequence[Picture]
) -> shapes.GetSessionScreenshotSuccessfulResponse:
    """Show the screens of a session; at least one. Exactly one of them becomes the primary one."""
    ordered = sorted(pictures, key=lambda picture: not picture.primary)
    images = tuple(
        shapes.SessionScreenshotImage(
            format=picture.format,
            data=picture.content,
            creation_time=instant(picture.taken_at),
            primary=position == 0,
        )
        for position, picture in enumerate(ordered)
    )
    return shapes.GetSessionScreenshotSuccessfulResponse(
        session_screenshot=shapes.SessionScreenshot(session_id=session_id, images=images)
    )


def _connections(report: records.Report, user: str | None) -> int:
    # Where the server doesn't say whose they are, each may be theirs.
    if user is None or len(report.visitors) < report.connections:
        return report.connections
    return report.visitors.count(user)


def _entrance(facts: records.Facts) -> records.Endpoint | None:
    return next((each for each in facts.endpoints if each.protocol == "HTTP"), None)


def _endpoints(facts: records.Facts) -> tuple[shapes.Endpoint, ...]:
    return tuple(
        shapes.Endpoint(
            ip_address=each.ip_address,
            port=each.port,
            protocol=each.protocol,
            web_url_path=each.web_url_path,
        )
        for each in facts.endpoints
    )


def _tags(facts: records.Facts) -> tuple[shapes.KeyValuePair, ...]:
    return tuple(shapes.KeyValuePair(key=key, value=value) for key, value in facts.tags.items())


def _host(host: records.Host) -> shapes.Host:
    return shapes.Host(
        os=shapes.Os(
            family=host.os.family,
            name=host.os.name,
            version=host.os.version,
            kernel_version=host.os.kernel_version,
            build_number=host.os.build_number,
        ),
        memory=shapes.Memory(total_bytes=host.memory_total, used_bytes=host.memory_used),
        swap=shapes.Swap(total_bytes=host.swap_total, used_bytes=host.swap_used),
        cpu_info=shapes.CpuInfo(
            vendor=host.cpu.vendor,
            model_name=host.cpu.model_name,
            architecture=host.cpu.architecture,
            number_of_cpus=host.cpu.number_of_cpus,
            physical_cores_per_cpu=host.cpu.physical_cores_per_cpu,
        ),
        cpu_load_average=_load(host.load),
        gpus=tuple(shapes.Gpu(vendor=gpu.vendor, model_name=gpu.model_name) for gpu in host.gpus),
        logged_in_users=tuple(shapes.LoggedInUser(username=name) for name in host.logged_in_users),
        aws=_aws(host.aws) if host.aws else None,
    )


def _load(load: tuple[float, float, float] | None) -> shapes.CpuLoadAverage | None:
    if load is None:
        return None
    return shapes.CpuLoadAverage(one_minute=load[0], five_minutes=load[1], fifteen_minutes=load[2])


def _aws(aws: records.Aws) -> shapes.Aws:
    return shapes.Aws(
        region=aws.region,
        ec2_instance_type=aws.instance_type,
        ec2_instance_id=aws.instance_id,
        ec2_image_id=aws.image_id,
    )
