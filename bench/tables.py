#!/usr/bin/env python3
"""Prints the results of bench/run.sh as Markdown tables.

    bench/tables.py DIR
"""

import json
import pathlib
import sys


def cells(*row):
    print("| " + " | ".join(str(cell) for cell in row) + " |")


def header(*names):
    print()
    cells(*names)
    cells(*["---"] * len(names))


def millis(micros):
    return f"{micros / 1e3:.2f}"


def mib(count):
    return f"{count / 2**20:.1f} MiB"


def percentiles(samples):
    """The least, p50, p90, p99, the greatest, and how many; dashes of none."""
    if samples is None:
        return ["-"] * 5 + [0]
    least = min(samples["samplesUs"])
    values = [samples[name] for name in ("p50Us", "p90Us", "p99Us", "maxUs")]
    return [millis(value) for value in [least] + values] + [len(samples["samplesUs"])]


def load(result):
    host = result["host"]
    return f"{host['load'][0]:.1f} → {host['loadAfter'][0]:.1f}"


PERCENTILES = ("min", "p50", "p90", "p99", "max", "n")
STEPS = {
    "t1": "T1 state set",
    "t2": "T2 first act",
    "t3": "T3 READY",
    "t4": "T4 first result",
}


def intervals(arms):
    header("arm", "", *PERCENTILES, "succeeded", "load")
    for arm, result in arms:
        for step, name in STEPS.items():
            if result["intervals"][step] is not None:
                succeeded = f"{result['succeeded']} of {result['count']}"
                cells(f"`{arm}`", name, *percentiles(result["intervals"][step]), succeeded, load(result))


def forks(results):
    arms = [(arm, results[arm]) for arm in ("shell", "fork", "cold") if arm in results]
    if not arms:
        return
    print("\n### Forks\n\nMilliseconds since the fork was asked for.")
    intervals(arms)
    first = [(arm, results[f"{arm}-first"]) for arm, _ in arms if f"{arm}-first" in results]
    if first:
        print("\nThe same with a real-time priority (`chrt --fifo 1`), no command run in them.")
        intervals(first)
    print("\nMemory of one fork, the median of five that are alive at once.")
    header("arm", "idle: private dirty", "idle: PSS", "after 64 MiB: private dirty", "after 64 MiB: PSS")
    for arm, result in arms:
        memory = result["memory"]
        both = [memory["idle"], memory["worked"]] if memory else []
        sizes = [mib(of[name]) for of in both for name in ("privateDirtyBytes", "pssBytes")]
        cells(f"`{arm}`", *(sizes or ["-"] * 4))
    print("\nFan-outs: milliseconds until the last of so many, asked for at the same moment, was READY.")
    sizes = [fan_out["forks"] for fan_out in arms[0][1]["fanOuts"]]
    header("arm", *sizes)
    for arm, result in arms:
        row = []
        for fan_out in result["fanOuts"]:
            failed = fan_out["forks"] - fan_out["succeeded"]
            row.append(f"{fan_out['wallMs']:.0f}" + (f" ({failed} failed)" if failed else ""))
        cells(f"`{arm}`", *row)


def totals(results):
    named = [("alive", "alive at once"), ("many", "in all, two at a time")]
    named = [(results[name], words) for name, words in named if name in results]
    if not named:
        return
    print("\n### Many forks\n\nArm `fork`, no command run in them.")
    header("", "succeeded", "wall", "T3 p50 (ms)", "T3 p99 (ms)", "private dirty of one", "PSS of one", "load")
    for result, words in named:
        alive = result["alive"]
        memory = [mib(alive["each"][name]) for name in ("privateDirtyBytes", "pssBytes")] if alive else ["-"] * 2
        ready = percentiles(result["intervals"]["t3"])
        succeeded = f"{result['succeeded']} of {result['count']}"
        wall = f"{result['wallMs'] / 1e3:.1f} s"
        cells(f"{result['count']} {words}", succeeded, wall, ready[1], ready[3], *memory, load(result))


def live_forks(results):
    for name in ("live-fork", "live-fork-2-vcpus"):
        if name not in results:
            continue
        result = results[name]
        plural = "s" if result["cpus"] > 1 else ""
        print(f"\n### Live fork, {result['memoryMB']} MiB, {result['cpus']} vCPU{plural}\n")
        print(f"Milliseconds. Load {load(result)}.")
        header("touched", "", *PERCENTILES)
        for size in result["sizes"]:
            touched = f"{size['touchedMB']} MB"
            cells(touched, "parent paused (T5)", *percentiles(size["pauseUs"]))
            cells(touched, "longest gap seen in the guest", *percentiles(size["guestSeenUs"]))
            cells(touched, "the same with no fork made", *percentiles(size["guestIdleUs"]))
        print()
        for size in result["sizes"]:
            steps = ", ".join(f"{what} {at_us:.0f}" for what, at_us in size["steps"])
            print(f"- The median pause at {size['touchedMB']} MB, µs since the stop: {steps}.")


def checkpoints(results):
    if "checkpoint" not in results:
        return
    result = results["checkpoint"]
    print(f"\n### Checkpoint of a running guest, {result['memoryMB']} MiB\n\nMilliseconds. Load {load(result)}.")
    header("touched", "written", "", *PERCENTILES)
    for size in result["sizes"]:
        row = [f"{size['touchedMB']} MB", mib(size["memoryFileBytes"])]
        cells(*row, "paused", *percentiles(size["pauseUs"]))
        cells(*row, "published after", *percentiles(size["totalUs"]))


def grow(results):
    if "grow" not in results:
        return
    result = results["grow"]
    print(f"\n### Growing and shrinking\n\nLoad {load(result)}.")
    header("from (MiB)", "to (MiB)", "MemTotal", "verified after", "of which the VMM ran", "resident")
    for step in result["steps"]:
        verified = f"{step['verifiedMs'] / 1e3:.1f} s"
        ran = f"{millis(step['vmmUs'])} ms"
        cells(step["fromMB"], step["toMB"], step["memTotalMB"], verified, ran, mib(step["residentBytes"]))
    if result["error"]:
        print(f"\nFAILED: {result['error']}")


def api(results):
    if "api" not in results:
        return
    result = results["api"]
    print(f"\n### The daemon\n\nMilliseconds, over its socket. Load {load(result)}.")
    header("at once", "", *PERCENTILES, "failed")
    rows = {
        "create": "create",
        "share": "of it, the daemon's own",
        "createAndExec": "create and exec (T4)",
        "delete": "delete",
    }
    for creates in result["creates"]:
        failed = sum(creates["failed"].values())
        for name, words in rows.items():
            if creates[name] is not None:
                cells(creates["concurrency"], words, *percentiles(creates[name]), failed)
    print(f"\n`GET /v1/sandboxes/{{id}}`: {result['getsPerSecond']:.0f} a second.")
    if result["growth"]:
        growth = result["growth"]
        header(f"{growth['cycles']} creates and deletes", *growth["before"])
        cells("before", *growth["before"].values())
        cells("after", *growth["after"].values())


def traces(results):
    for arm in ("shell", "fork", "cold"):
        result = results.get(f"{arm}-first") or results.get(arm) or {}
        marks = result.get("trace")
        if not marks:
            continue
        print(f"\n### Where the time goes, arm `{arm}`: the fork with the median T3\n")
        print("```text")
        before = None
        for mark in marks:
            at = mark["atUs"]
            when = "in advance" if at < 0 else f"{at:.1f}"
            step = "" if before is None or mark["what"] == "asked" else f"+{at - before:.1f}"
            print(f"{when:>10} {step:>10}  {mark['what']}")
            before = at
        print("```")


def main():
    directory = pathlib.Path(sys.argv[1])
    results = {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}
    if not results:
        sys.exit(f"no results in {directory}")
    host = next(iter(results.values()))["host"]
    print(
        f"Linux {host['kernel']}, KVM {host['kvm']}, {host['cpus']} cores, "
        f"governor {host['governor']}, THP {host['thp']}."
    )
    for part in (forks, totals, live_forks, checkpoints, grow, api, traces):
        part(results)
    for name, result in results.items():
        for error in result.get("errors", []):
            print(f"\nFAILED in {name}: {error}")


if __name__ == "__main__":
    main()
