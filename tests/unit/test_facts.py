"""Facts of made-up machines: hardware from folders, addresses by choice, answers that take long."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from deskfleet.agent.addresses import choose
from deskfleet.agent.facts import KEPT_SECONDS, FactsSource, Profile
from deskfleet.agent.hardware import Hardware
from deskfleet.core.records import Gpu, Type
from deskfleet.machine.posix import logged_in_users
from deskfleet.ports import Door, Service
from support.waiting import until

PCI_IDS = """\
# A comment
10de  NVIDIA Corporation
\t13f2  GM204GL [Tesla M60]
\t\t10de 113a  GRID M60-8Q
1013  Cirrus Logic
\t00b8  GD 5446
C 03  Display controller
\t00  VGA compatible controller
"""


class ManualClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def pci_device(root: Path, address: str, klass: str, vendor: str, device: str) -> None:
    for name, text in (("class", klass), ("vendor", vendor), ("device", device)):
        write(root, f"sys/bus/pci/devices/{address}/{name}", f"0x{text}\n")


def nvidia_gpu(root: Path, address: str, model: str) -> None:
    text = f"Model: \t\t {model}\nIRQ:   \t\t 28\n"
    write(root, f"proc/driver/nvidia/gpus/{address}/information", text)


class TestGpus:
    def test_are_named_from_pci_ids(self, tmp_path: Path) -> None:
        pci_device(tmp_path, "0000:00:1e.0", "030200", "10de", "13f2")
        pci_device(tmp_path, "0000:00:02.0", "030000", "1013", "00b8")
        pci_device(tmp_path, "0000:00:03.0", "020000", "8086", "10ed")
        write(tmp_path, "usr/share/hwdata/pci.ids", PCI_IDS)
        assert Hardware(tmp_path).gpus() == (
            Gpu(vendor="Cirrus Logic", model_name="GD 5446"),
            Gpu(vendor="NVIDIA Corporation", model_name="GM204GL [Tesla M60]"),
        )

    def test_without_a_name_are_their_ids(self, tmp_path: Path) -> None:
        pci_device(tmp_path, "0000:00:1e.0", "030200", "10de", "ffff")
        unnamed = "PCI device 10de:ffff"
        assert Hardware(tmp_path).gpus() == (Gpu(vendor="PCI vendor 10de", model_name=unnamed),)
        write(tmp_path, "usr/share/misc/pci.ids", PCI_IDS)
        assert Hardware(tmp_path).gpus() == (Gpu(vendor="NVIDIA Corporation", model_name=unnamed),)

    def test_of_nvidia_are_named_by_its_driver_once(self, tmp_path: Path) -> None:
        pci_device(tmp_path, "0000:00:1e.0", "030200", "10de", "13f2")
        nvidia_gpu(tmp_path, "0000:00:1e.0", "Tesla M60")
        nvidia_gpu(tmp_path, "0000:00:1F.0", "NVIDIA L4")
        write(tmp_path, "proc/driver/nvidia/gpus/0000:00:20.0/information", "nonsense")
        assert [gpu.model_name for gpu in Hardware(tmp_path).gpus()] == ["Tesla M60", "NVIDIA L4"]

    def test_may_be_none(self, tmp_path: Path) -> None:
        assert Hardware(tmp_path).gpus() == ()


def cpu_topology(root: Path, packages: list[list[str]]) -> None:
    """Write the topology of packages of cores; a core is the list of its threads."""
    for package, cores in enumerate(packages):
        for threads in cores:
            for thread in threads.split(","):
                folder = f"sys/devices/system/cpu/cpu{thread}/topology"
                write(root, f"{folder}/physical_package_id", f"{package}\n")
                write(root, f"{folder}/thread_siblings_list", f"{threads}\n")


class TestCpu:
    def test_counts_the_cores_of_one_package(self, tmp_path: Path) -> None:
        cpu_topology(tmp_path, [["0,4", "1,5"], ["2,6", "3,7"]])
        (tmp_path / "sys/devices/system/cpu/cpufreq").mkdir()
        cpu = Hardware(tmp_path).cpu()
        assert cpu.physical_cores_per_cpu == 2
        assert cpu.number_of_cpus == psutil.cpu_count()

    def test_is_named_as_x86_names_itself(self, tmp_path: Path) -> None:
        block = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R): fast\n"
        write(tmp_path, "proc/cpuinfo", "\n".join(block.format(n) for n in range(2)))
        cpu = Hardware(tmp_path).cpu()
        assert (cpu.vendor, cpu.model_name) == ("GenuineIntel", "Intel(R) Xeon(R): fast")

    def test_of_arm_has_a_vendor(self, tmp_path: Path) -> None:
        write(tmp_path, "proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41\n")
        assert Hardware(tmp_path).cpu().vendor == "ARM"
        write(tmp_path, "proc/cpuinfo", "processor\t: 0\nCPU implementer\t: what\n")
        assert Hardware(tmp_path).cpu().vendor is None


class TestOs:
    def test_is_that_of_os_release(self, tmp_path: Path) -> None:
        write(tmp_path, "etc/os-release", 'NAME="Amazon Linux"\nVERSION_ID="2"\nID="amzn"\n')
        found = Hardware(tmp_path).os()
        assert (found.family, found.name, found.version) == ("linux", "Amazon Linux", "2")
        assert found.kernel_version

    def test_may_have_no_name(self, tmp_path: Path) -> None:
        assert Hardware(tmp_path).os().name is None


INTERFACES = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["fe80::1", "2001:db8::7", "192.0.2.7"],
    "eth1": ["198.51.100.8"],
    "eth2": ["fe80::2"],
}


class TestAddress:
    @pytest.mark.parametrize(
        ("preferred", "routed", "chosen"),
        [
            ("eth1", "192.0.2.7", "198.51.100.8"),
            ("eth0", None, "192.0.2.7"),
            ("eth2", "192.0.2.7", "fe80::2"),
            (None, "198.51.100.8", "198.51.100.8"),
            ("ETH1", "192.0.2.7", "192.0.2.7"),
            ("gone", "192.0.2.7", "192.0.2.7"),
            ("gone", None, "192.0.2.7"),
            (None, None, "192.0.2.7"),
        ],
    )
    def test_is_chosen(self, preferred: str | None, routed: str | None, chosen: str) -> None:
        assert choose(INTERFACES, preferred, routed) == chosen

    def test_of_a_machine_without_a_network_is_the_loopback(self) -> None:
        assert choose({"lo": ["127.0.0.1"]}, None, None) == "127.0.0.1"
        assert choose({}, "eth0", None) == "127.0.0.1"
        assert choose({"lo": ["127.0.0.1"], "eth0": ["2001:db8::7"]}, None, None) == "2001:db8::7"


def session(root: Path, name: str, user: str, klass: str = "user", state: str = "active") -> None:
    text = f"# private\nUID=1000\nUSER={user}\nSTATE={state}\nCLASS={klass}\n"
    write(root, f"run/systemd/sessions/{name}", text)


def test_logged_in_users_are_distinct_people(tmp_path: Path) -> None:
    session(tmp_path, "1", "zoe")
    session(tmp_path, "2", "bob")
    session(tmp_path, "3", "bob")
    session(tmp_path, "4", "gdm", klass="greeter")
    session(tmp_path, "5", "gone", state="closing")
    (tmp_path / "run/systemd/sessions/1.ref").mkdir()
    expected = {"bob", "zoe"} | {user.name for user in psutil.users()}
    assert logged_in_users(tmp_path) == tuple(sorted(expected))


def profile(
    *, types: tuple[Type, ...] = (Type.VIRTUAL,), folders: tuple[Path, ...] = ()
) -> Profile:
    return Profile(
        server_id="server-1",
        driver="simulated",
        driver_version="1.0",
        agent_version="0.1.0",
        port=8444,
        web_url_path="/desk/",
        tags_folders=folders,
        max_virtual_sessions=10,
        max_sessions_per_user=2,
        types=types,
        extra_tags={"driver": "simulated"},
    )


class TestFacts:
    def test_say_what_the_profile_says(self, tmp_path: Path) -> None:
        source = FactsSource(profile(), ManualClock(), metadata_url=None, resolve=lambda: "desk1")
        facts = source.read(unhealthy="no Xvnc")
        assert facts.id == "server-1"
        assert (facts.driver, facts.version, facts.agent_version) == ("simulated", "1.0", "0.1.0")
        (endpoint,) = facts.endpoints
        assert endpoint.ip_address == facts.ip
        assert (endpoint.port, endpoint.web_url_path, endpoint.protocol) == (8444, "/desk/", "HTTP")
        assert (facts.max_virtual_sessions, facts.max_sessions_per_user) == (10, 2)
        assert facts.unhealthy == "no Xvnc"
        assert source.read().unhealthy is None

    def test_say_what_another_says_that_lets_clients_in(self) -> None:
        source = FactsSource(profile(), ManualClock(), metadata_url=None, resolve=lambda: "desk1")
        doors = (Door(port=9443, web_url_path="/d"), Door(port=9444, protocol="QUIC"))
        service = Service(version="2024.0", types=(Type.CONSOLE,), doors=doors)
        facts = source.read(service=service)
        assert (facts.version, facts.types) == ("2024.0", (Type.CONSOLE,))
        assert [(one.port, one.web_url_path, one.protocol) for one in facts.endpoints] == [
            (9443, "/d", "HTTP"),
            (9444, "/", "QUIC"),
        ]
        assert {one.ip_address for one in facts.endpoints} == {facts.ip}
        assert facts.tags["dcv:max-virtual-sessions"] == "0"

    def test_tags_of_files_can_not_override_ours(self, tmp_path: Path) -> None:
        write(tmp_path, "tags/a.toml", 'color = "pink"\ndriver = "dcv"\n"dcv:os-family" = "mac"\n')
        given = profile(folders=(tmp_path / "tags",))
        source = FactsSource(given, ManualClock(), metadata_url=None, resolve=lambda: "desk1")
        assert source.read().tags == {
            "color": "pink",
            "driver": "simulated",
            "dcv:os-family": "linux",
            "dcv:max-virtual-sessions": "10",
            "dcv:max-concurrent-sessions-per-user": "2",
        }
        write(tmp_path, "tags/a.toml", 'color = "blue"\n')
        assert source.read().tags["color"] == "blue"

    def test_a_server_of_consoles_only_says_it_has_no_virtual_sessions(self) -> None:
        source = FactsSource(
            profile(types=(Type.CONSOLE,)),
            ManualClock(),
            metadata_url=None,
            resolve=lambda: "desk1",
        )
        assert source.read().tags["dcv:max-virtual-sessions"] == "0"

    def test_slow_facts_are_kept_and_renewed(self, tmp_path: Path) -> None:
        clock = ManualClock()
        source = FactsSource(
            profile(), clock, root=tmp_path, metadata_url=None, resolve=lambda: "desk1"
        )
        assert source.read().host.gpus == ()
        pci_device(tmp_path, "0000:00:1e.0", "030200", "10de", "13f2")
        clock.seconds += KEPT_SECONDS - 1
        assert source.read().host.gpus == ()
        clock.seconds += 1
        assert len(source.read().host.gpus) == 1


class TestFullName:
    def test_never_delays_a_read(self) -> None:
        answer = threading.Event()

        def resolve() -> str:
            assert answer.wait(30)
            return "Desk1.Example.org."

        source = FactsSource(profile(), ManualClock(), metadata_url=None, resolve=resolve)
        assert source.read().dns_name is None
        answer.set()
        until(lambda: source.read().dns_name == "desk1.example.org")

    def test_is_asked_for_again_and_kept_meanwhile(self) -> None:
        clock = ManualClock()
        names = iter(["one.example.org", "two.example.org"])
        second = threading.Event()

        def resolve() -> str:
            name = next(names)
            if name.startswith("two"):
                assert second.wait(30)
            return name

        source = FactsSource(profile(), clock, metadata_url=None, resolve=resolve)
        until(lambda: source.read().dns_name == "one.example.org")
        clock.seconds += KEPT_SECONDS
        assert source.read().dns_name == "one.example.org"
        second.set()
        until(lambda: source.read().dns_name == "two.example.org")

    @pytest.mark.parametrize(
        "said", ["desk1", "localhost.localdomain", "1.0.0.127.in-addr.arpa", ""]
    )
    def test_must_be_a_full_one(self, said: str) -> None:
        asked = threading.Event()

        def resolve() -> str:
            asked.set()
            return said

        source = FactsSource(profile(), ManualClock(), metadata_url=None, resolve=resolve)
        source.read()
        assert asked.wait(30)
        inquiry = source._name
        assert inquiry is not None
        until(lambda: inquiry.answered)
        assert source.read().dns_name is None

    def test_may_fail(self) -> None:
        def resolve() -> str:
            raise OSError("no name server")

        source = FactsSource(profile(), ManualClock(), metadata_url=None, resolve=resolve)
        source.read()
        inquiry = source._name
        assert inquiry is not None
        until(lambda: inquiry.answered)
        assert source.read().dns_name is None
