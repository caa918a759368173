"""What this machine is made of, read from the files the kernel and the distribution offer.

Runs no program and needs no rights: it reads below `root` only (`/`, but for tests), and a file
that is missing or says nonsense means "not known". What the system has no files for, it is asked
for (`deskfleet.machine`). What is told changes with a reboot or an upgrade at most, so callers
keep it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from deskfleet.core.records import Cpu, Gpu, Os
from deskfleet.machine import here

_DISPLAY_CONTROLLER = "0x03"
_PCI_NAMES = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_NVIDIA = "NVIDIA Corporation"

# ARM's registry of implementers; x86 and others name their vendor themselves.
_ARM_VENDORS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "FUJITSU",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x50: "APM",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}


class Hardware:
    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def os(self) -> Os:
        """Return the operating system as it names itself."""
        return here.operating_system(self._root)

    def cpu(self) -> Cpu:
        """Return the CPUs as DescribeServers counts them.

        `number_of_cpus` is what an operating system schedules on (hyper-threads),
        `physical_cores_per_cpu` the cores of one package: a g3s.xlarge of 2 cores with 2
        threads each is 4 and 2.
        """
        first, said = self._first_processor(), here.processor()
        vendor = first.get("vendor_id") or _arm_vendor(first.get("CPU implementer", ""))
        return Cpu(
            vendor=vendor or said.vendor,
            model_name=first.get("model name") or first.get("cpu") or said.model_name,
            architecture=said.architecture,
            number_of_cpus=psutil.cpu_count(),
            physical_cores_per_cpu=self._cores_per_package() or psutil.cpu_count(logical=False),
        )

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the display controllers, in the order of their PCI addresses."""
        devices = dict(self._display_devices())
        models = dict(self._nvidia_models())
        names = self._pci_names(devices.values())
        found = {address: names.get(ids, _unnamed(*ids)) for address, ids in devices.items()}
        for address, model in models.items():
            found[address] = Gpu(vendor=_NVIDIA, model_name=model)
        return tuple(found[address] for address in sorted(found)) or here.display_adapters()

    def boot_id(self) -> str:
        """Return what changes with every boot."""
        text = _read(self._root / "proc/sys/kernel/random/boot_id").strip()
        return text or f"boot-{int(psutil.boot_time())}"

    def _first_processor(self) -> dict[str, str]:
        block = _read(self._root / "proc/cpuinfo").split("\n\n", 1)[0]
        pairs = (line.partition(":") for line in block.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _cores_per_package(self) -> int | None:
        """Return the cores of the fullest package. Threads of one core share one sibling list."""
        packages: dict[str, set[str]] = {}
        for topology in (self._root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
            siblings = _read(topology / "thread_siblings_list")
            if siblings:
                package = _read(topology / "physical_package_id")
                packages.setdefault(package, set()).add(siblings)
        return max(map(len, packages.values()), default=None)

    def _display_devices(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """Give the PCI address and the ids (vendor, device; bare lower-case hex) of each."""
        for device in (self._root / "sys/bus/pci/devices").glob("*"):
            if _read(device / "class").startswith(_DISPLAY_CONTROLLER):
                vendor, model = (_read(device / name).strip() for name in ("vendor", "device"))
                yield device.name, (vendor.removeprefix("0x"), model.removeprefix("0x"))

    def _nvidia_models(self) -> Iterator[tuple[str, str]]:
        """Give what NVIDIA's driver says; in a container it may know more than sysfs shows."""
        for gpu in (self._root / "proc/driver/nvidia/gpus").glob("*"):
            match = re.search(r"^Model:\s*(\S.*?)\s*$", _read(gpu / "information"), re.MULTILINE)
            if match:
                yield gpu.name.lower(), match[1]

    def _pci_names(self, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Gpu]:
        missing = set(wanted)
        if not missing:
            return {}
        for path in _PCI_NAMES:
            text = _read(self._root / path)
            if text:
                return _names_from_pci_ids(text, missing)
        return {}


def _names_from_pci_ids(text: str, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Gpu]:
    """Look names up in a pci.ids text: `vvvv  name` lines, below each `<tab>dddd  name` lines."""
    found: dict[tuple[str, str], Gpu] = {}
    vendors = {vendor for vendor, _ in wanted}
    vendor_id = vendor = ""
    for line in text.splitlines():
        if line[:1] not in {"\t", "#", ""}:
            vendor_id, _, vendor = line.partition("  ")
            if vendor_id in vendors:
                for ids in wanted:
                    if ids[0] == vendor_id:
                        found[ids] = Gpu(vendor=vendor, model_name=_unnamed(*ids).model_name)
        elif vendor_id in vendors and line.startswith("\t") and line[1:2] != "\t":
            model_id, _, model = line[1:].partition("  ")
            if (vendor_id, model_id) in wanted:
                found[vendor_id, model_id] = Gpu(vendor=vendor, model_name=model)
    return found


def _unnamed(vendor: str, model: str) -> Gpu:
    return Gpu(vendor=f"PCI vendor {vendor}", model_name=f"PCI device {vendor}:{model}")


def _arm_vendor(implementer: str) -> str | None:
    try:
        return _ARM_VENDORS.get(int(implementer, 16))
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
