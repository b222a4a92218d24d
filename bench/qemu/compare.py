#!/usr/bin/env python3
"""What our users have today, beside what Spore does: QEMU's migrate-to-file and back, in one interleaved run.

    bench/qemu/compare.py [--rounds N] [--memory MB] [--spore PROGRAM]

The same guest kernel and base boot under Debian's QEMU (microvm, KVM, virtio-mmio) with a shell as init that prints a
line every 10 ms. It is stopped and migrated to a file; that is how long a guest stands still for a snapshot there. Then,
round by round: QEMU loads the file, from the start of its process to the first byte that the resumed guest prints; and
`spore bench fork` makes forks of its bench image, with and without a shell, to READY.

There is no virtio-mem in it: QEMU has it for PCI only, and the guest kernel has no PCI.

Needs qemu-system-x86 (apt-get install qemu-system-x86), `make kernel base build-release`, and a usable /dev/kvm.
Everything it starts it ends, and its files are in a temporary directory.
"""

import argparse
import json
import os
import pathlib
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TICK = b"tick"
LIMIT = 60.0


def cache():
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "spore"
    return pathlib.Path(os.environ.get("SPORE_CACHE") or default)


def software_kvm_options():
    """As vmm/src/kvm.rs adds them where guest kernels are interpreted."""
    if not pathlib.Path("/sys/module/kvm_pvm").exists():
        return ""
    return (
        "no-kvmapf noxsave nosmap clearcpuid=cx16,erms,fsrm,popcnt,smap lpj=10400000 clocksource=kvm-clock "
        "noreplace-smp rodata=off percpu_alloc=page thash_entries=1024 uhash_entries=256 dhash_entries=8192 "
        "ihash_entries=8192"
    )


class Qemu:
    """One QEMU, its console and its monitor. Ended when the `with` is."""

    def __init__(self, directory, memory_mb, incoming=None):
        self.monitor_path = directory / "monitor"
        self.monitor_path.unlink(missing_ok=True)
        command = "while :; do echo tick; usleep 10000; done"
        append = (
            "console=ttyS0 quiet root=/dev/vda ro rootfstype=ext4 panic=-1 mitigations=off tsc=reliable "
            f"{software_kvm_options()} init=/bin/sh -- -c \"{command}\""
        )
        arguments = [
            "qemu-system-x86_64", "-M", "microvm,acpi=on,isa-serial=on,rtc=off", "-accel", "kvm", "-cpu", "host",
            "-m", f"{memory_mb}M", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(cache() / "kernel/current/vmlinux"), "-append", append,
            "-drive", f"id=root,file={cache() / 'bases/busybox/rootfs.ext4'},format=raw,if=none,read-only=on",
            "-device", "virtio-blk-device,drive=root",
            "-serial", "stdio", "-qmp", f"unix:{self.monitor_path},server=on,wait=off",
        ]
        if incoming:
            arguments += ["-incoming", f"exec:cat {incoming}"]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.console = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait_for(self, text, limit=LIMIT):
        """Seconds from the start of the process to the first byte that ends with `text` on the console."""
        while time.monotonic() - self.started < limit:
            ready, _, _ = select.select([self.process.stdout], [], [], 1.0)
            if ready:
                got = os.read(self.process.stdout.fileno(), 4096)
                if not got:
                    break
                self.console += got
                if text in self.console:
                    return time.monotonic() - self.started
        self.process.kill()
        said = self.process.stderr.read().decode(errors="replace")
        sys.exit(f"QEMU's guest did not print {text!r}; QEMU said: {said}; console: {self.console[-800:]!r}")

    def ask(self, *commands):
        """Answers of the monitor to commands, given one after the other."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.monitor_path))
            stream = monitor.makefile("rw")
            json.loads(stream.readline())
            answers = []
            for command in ({"execute": "qmp_capabilities"}, *commands):
                print(json.dumps(command), file=stream, flush=True)
                while True:
                    answer = json.loads(stream.readline())
                    if "return" in answer:
                        answers.append(answer["return"])
                        break
                    if "error" in answer:
                        sys.exit(f"QEMU refuses {command}: {answer['error']}")
            return answers[1:]

    def go_on(self):
        """Lets a guest run that was loaded: one that was stopped when it was saved stays so."""
        while time.monotonic() - self.started < LIMIT:
            try:
                if self.ask({"execute": "query-status"})[0]["status"] != "inmigrate":
                    break
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            time.sleep(0.001)
        self.ask({"execute": "cont"})

    def save(self, path):
        """Stops the guest and migrates it to a file; seconds that took."""
        started = time.monotonic()
        self.ask({"execute": "stop"}, {"execute": "migrate", "arguments": {"uri": f"exec:cat > {path}"}})
        while True:
            status = self.ask({"execute": "query-migrate"})[0].get("status")
            if status == "completed":
                return time.monotonic() - started
            if status in ("failed", "cancelled"):
                sys.exit(f"QEMU's migration {status}")
            time.sleep(0.002)


def spore(program, arm, memory_mb):
    """T3 of a few forks, in seconds."""
    command = [program, "--json", "bench", "fork", "--arm", arm, "--count", "5", "--no-exec", "--no-memory"]
    command += ["--fan-outs", "0", "--memory", str(memory_mb)]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return [us / 1e6 for us in report["intervals"]["t3"]["samplesUs"]]


def row(name, samples):
    ordered = sorted(samples)
    ninety = ordered[max(0, -(-len(ordered) * 9 // 10) - 1)]
    print(f"| {name} | {statistics.median(ordered) * 1e3:.1f} | {ninety * 1e3:.1f} | {len(ordered)} |")


def main():
    here = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", type=int, default=1024, metavar="MB")
    parser.add_argument("--spore", default=str(here / "target/release/spore"))
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        sys.exit("there is no qemu-system-x86_64: apt-get install qemu-system-x86")
    load, loaded, shells, forks = os.getloadavg(), [], [], []
    with tempfile.TemporaryDirectory(prefix="spore-qemu-") as directory:
        directory = pathlib.Path(directory)
        saved = directory / "guest"
        with Qemu(directory, options.memory) as guest:
            booted = guest.wait_for(TICK)
            time.sleep(1)
            still = guest.save(saved)
        size = saved.stat().st_size
        spore(options.spore, "fork", options.memory)  # The image is built, and everything is in the page cache.
        for _ in range(options.rounds):
            with Qemu(directory, options.memory, saved) as guest:
                guest.go_on()
                loaded.append(guest.wait_for(b"ck"))
            forks += spore(options.spore, "fork", options.memory)
            shells += spore(options.spore, "shell", options.memory)
    version = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, check=True).stdout
    print(f"{version.decode().splitlines()[0]}, guest of {options.memory} MiB, load {load[0]:.2f} → {os.getloadavg()[0]:.2f}\n")
    print(f"QEMU boots the guest in {booted:.1f} s; stopped, it is {size >> 20} MiB in {still * 1e3:.0f} ms, and stands still meanwhile.\n")
    print("| ms | p50 | p90 | n |\n| --- | --- | --- | --- |")
    row("QEMU: process started → first byte of the resumed guest", loaded)
    row("Spore, arm `fork`: asked → READY", forks)
    row("Spore, arm `shell`: asked → READY", shells)
    ratio = lambda samples: statistics.median(loaded) / statistics.median(samples)
    print(f"\nQEMU takes {ratio(forks):.1f} times as long as a fork, and {ratio(shells):.1f} times as long as a shell.")


main()
