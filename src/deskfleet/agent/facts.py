"""What an agent says of its machine: composes `core.records.Facts`.

A read is cheap enough for every ten seconds (about a millisecond): what changes slowly is kept
for ten minutes, and what may take long is asked on threads of its own, so that a read, and with
it the agent's start, never waits for a name server or a metadata service; what they say is part
of a later read. A fact that can't be had is left out.

Contacts nobody except, once, the EC2 metadata service, and the name server that the machine is
configured with. Runs no program, writes no file.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import psutil

from deskfleet.agent.addresses import server_address
from deskfleet.agent.ec2 import METADATA_URL, ask_metadata_service
from deskfleet.agent.hardware import Hardware
from deskfleet.agent.logins import foreign_user
from deskfleet.agent.tags import TagsFolder, reserved_tags
from deskfleet.core.platforms import WINDOWS
from deskfleet.core.records import Aws, Cpu, Endpoint, Facts, Gpu, Host, Os, Type
from deskfleet.machine import here
from deskfleet.ports import Clock, Door, Service
from deskfleet.wire.bounds import cut

KEPT_SECONDS = 600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the agent's settings and its driver say of a server; its machine says the rest."""

    server_id: str
    driver: str
    driver_version: str
    agent_version: str
    port: int
    web_url_path: str = "/"
    preferred_network_interface: str | None = None
    tags_folders: tuple[Path, ...] = ()
    max_virtual_sessions: int = -1
    max_sessions_per_user: int = 1
    types: tuple[Type, ...] = (Type.VIRTUAL,)
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    """What the driver itself is tagged with; a file can't override it."""
    query_logged_in_users: bool = True


@dataclass(frozen=True, slots=True)
class _Kept:
    until: float
    os: Os
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    boot_id: str


class Inquiry(Generic[T]):
    """A question that may take long: asked on a thread that nobody waits for."""

    def __init__(self, name: str, ask: Callable[[], T | None]) -> None:
        self._ask = ask
        self._answer: T | None = None
        # A daemon: a name server that doesn't answer must not keep the agent from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def answer(self) -> T | None:
        return self._answer

    @property
    def answered(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._answer = self._ask()


class FactsSource:
    """The facts of this machine. Read by one thread at a time.

    `metadata_url` None never asks for EC2's facts; `root` is where `/proc`, `/sys`, `/etc` and
    `/usr/share` are looked for; `resolve` gives the machine's full name and may block.
    """

    def __init__(
        self,
        profile: Profile,
        clock: Clock,
        *,
        root: Path = Path("/"),
        metadata_url: str | None = METADATA_URL,
        resolve: Callable[[], str] = socket.getfqdn,
    ) -> None:
        self._profile = profile
        self._clock = clock
        self._root = root
        self._hardware = Hardware(root)
        self._tags = TagsFolder(profile.tags_folders)
        self._metadata_url = metadata_url
        self._resolve = resolve
        self._kept: _Kept | None = None
        self._name: Inquiry[str] | None = None
        self._dns_name: str | None = None
        self._ec2: Inquiry[Aws] | None = None

    def read(
        self,
        unhealthy: str | None = None,
        owners: Collection[str] = (),
        service: Service | None = None,
    ) -> Facts:
        """Return the facts as of now.

        `unhealthy` is why the driver can't serve, where it can't; `owners` own what runs here;
        `service` is what lets clients in, where that isn't the agent itself.
        """
        profile, kept = self._profile, self._slow_facts()
        users = here.logged_in_users(self._root) if profile.query_logged_in_users else ()
        ip = server_address(profile.preferred_network_interface)
        service = service or self._own_service()
        return Facts(
            id=profile.server_id,
            hostname=socket.gethostname(),
            ip=ip,
            host=self._host(kept, users),
            driver=profile.driver,
            version=service.version,
            agent_version=profile.agent_version,
            boot_id=kept.boot_id,
            dns_name=self._full_name(),
            endpoints=tuple(
                Endpoint(
                    ip_address=ip,
                    port=door.port,
                    web_url_path=door.web_url_path,
                    protocol=door.protocol,
                )
                for door in service.doors
            ),
            tags=self._all_tags(kept.os.family, service.types),
            types=service.types,
            max_virtual_sessions=profile.max_virtual_sessions,
            max_sessions_per_user=profile.max_sessions_per_user,
            unhealthy=None if unhealthy is None else cut(unhealthy),
            foreign_user=foreign_user(users, owners) if kept.os.family == WINDOWS else None,
        )

    def _own_service(self) -> Service:
        profile = self._profile
        door = Door(port=profile.port, web_url_path=profile.web_url_path)
        return Service(version=profile.driver_version, types=profile.types, doors=(door,))

    def _slow_facts(self) -> _Kept:
        """Return what changes slowly, and when it is looked at anew, ask the slow ones too."""
        now = self._clock.monotonic()
        if self._kept is None or now >= self._kept.until:
            hardware = self._hardware
            until = now + KEPT_SECONDS
            self._kept = _Kept(
                until, hardware.os(), hardware.cpu(), hardware.gpus(), hardware.boot_id()
            )
            if self._name is None or self._name.answered:
                self._name = Inquiry("full-name", partial(_full_name, self._resolve))
            if self._ec2 is None and self._metadata_url is not None:
                self._ec2 = Inquiry("ec2", partial(ask_metadata_service, self._metadata_url))
        return self._kept

    def _full_name(self) -> str | None:
        """Return the newest full name; it stays while a later question has no answer yet."""
        if self._name is not None and self._name.answered:
            self._dns_name = self._name.answer
        return self._dns_name

    def _host(self, kept: _Kept, users: tuple[str, ...]) -> Host:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        return Host(
            os=kept.os,
            memory_total=memory.total,
            memory_used=memory.used,
            swap_total=swap.total,
            swap_used=swap.used,
            cpu=kept.cpu,
            load=here.load_averages(),
            gpus=kept.gpus,
            logged_in_users=users,
            aws=self._ec2.answer if self._ec2 is not None else None,
        )

    def _all_tags(self, os_family: str, types: Collection[Type]) -> dict[str, str]:
        profile = self._profile
        virtual = Type.VIRTUAL in types
        return {
            **self._tags.read(),
            **profile.extra_tags,
            **reserved_tags(
                os_family=os_family,
                max_virtual_sessions=profile.max_virtual_sessions if virtual else 0,
                max_sessions_per_user=profile.max_sessions_per_user,
            ),
        }


def _full_name(resolve: Callable[[], str]) -> str | None:
    """Return the machine's name where it is a full one: with a domain, and not localhost's."""
    try:
        name = resolve().rstrip(".").lower()
    except (OSError, UnicodeError):
        return None
    unusable = name.startswith(("localhost.", "ip6-localhost.")) or name.endswith(".arpa")
    return name if "." in name and not unusable else None
