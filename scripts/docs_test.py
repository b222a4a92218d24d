"""Does what the documents tell their readers to do, as it stands there, and looks whether it comes out as they say.

    docs_test.py tutorial                 docs/tutorial.md, in the current directory, with `spore` of PATH
    docs_test.py scheduler ROOMY FULL     the example of docs/scheduler.md, with the sockets of two daemons

FULL has one sandbox, and may have no other; it claims to have more memory free than ROOMY. Both have the image `tools`.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
FENCED = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
# Interpreted guests boot in a minute each. A block that waits for what never comes would wait for ever.
PATIENCE_SECONDS = 1200


def fenced(document):
    """Language, text and whether it is run, of each fenced block."""
    blocks = FENCED.findall((DOCS / document).read_text())
    return [(language, text, not left_out) for left_out, language, text in blocks]


def pattern(text):
    """What a document says is printed: `…` is the rest of a line or a part of it, on a line of its own any lines."""
    lines = [".*".join(map(re.escape, line.split("…"))) + r"\n" for line in text.splitlines()]
    return re.compile("".join(r"(?:.*\n)*" if line == r".*\n" else line for line in lines))


class Wrong(Exception):
    """The document and what comes of it are not of one mind."""


def expect(true, what, *seen):
    if not true:
        raise Wrong("\n".join(map(str, [what, *seen])))


def tutorial():
    """Runs the blocks in one shell, and compares what each prints with the block below it."""
    blocks = fenced("tutorial.md")
    steps = []
    for (language, text, is_run), below in zip(blocks, [*blocks[1:], ("", "", False)]):
        if language == "sh" and is_run:
            expect(below[0] == "text", "the tutorial does not say what this prints", text)
            steps.append((text, below[1]))
    expect(len(steps) == 9, "steps found in the tutorial", len(steps))

    with tempfile.TemporaryDirectory() as outputs:
        # The daemon of a block that failed has to end as well.
        script = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
        for number, (text, _) in enumerate(steps):
            script += [f'exec >"{outputs}/{number}" 2>&1', text]
        command = pathlib.Path(outputs, "all.sh")
        command.write_text("\n".join([*script, ""]))
        with subprocess.Popen(["bash", command], stdin=subprocess.DEVNULL, start_new_session=True) as shell:
            try:
                shell.wait(PATIENCE_SECONDS)
            except BaseException as error:
                os.killpg(shell.pid, signal.SIGTERM)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
        printed = [pathlib.Path(outputs, str(number)) for number in range(len(steps))]
        printed = [path.read_text() for path in printed if path.exists()]
    ended = len(printed) if shell.returncode == 0 else len(printed) - 1
    for (text, says), output in zip(steps[:ended], printed):
        expect(pattern(says).fullmatch(output), "of", text, "it says", says, "but this was printed", output)
    if ended < len(printed):
        raise Wrong(f"a block failed with status {shell.returncode}: {steps[ended][0]}\n{printed[ended]}")

    # What the document cannot say with `…`.
    _, _, _, made, grown, forked, kept, found, deleted = printed
    sandbox, greeted = re.search(r'^{"id":"(vm-\w+)".*"stdout":"hello from (vm-\w+)', made).groups()
    expect(greeted == sandbox, "a sandbox has another host name than id", made)
    before, after = (int(re.search(r"Mem: +(\d+)", text)[1]) for text in (made, grown))
    expect(900 < before <= 1024 and 1900 < after <= 2048, "the memory that the guest shows", before, after)
    names = re.findall(r"^(vm-\w+): warm$", forked, re.MULTILINE)
    answered = re.findall(r'"id":"(vm-\w+)"', forked)
    expect(len(answered) == 3, "the forks", forked)
    expect(sorted(names) == sorted([sandbox, *answered]), "forks have other host names than ids", forked)
    resumed = re.search(r'^{"id":"(vm-\w+)"', kept, re.MULTILINE)[1]
    expect(sorted(found.split()) == sorted([*answered, resumed]), "sandboxes after the daemon's restart", found, kept)
    expect(sorted(deleted.split()) == sorted(found.split()), "what was deleted at the end", found, deleted)
    print(f"the tutorial: {len(steps)} blocks, as it says")


def refused(place, *call):
    try:
        return place(*call)
    except RuntimeError as error:
        return str(error)


def scheduler(roomy, full):
    """Has the example place jobs on hosts that are there, full, dead, and lose an answer."""
    (example,) = (text for language, text, _ in fenced("scheduler.md") if language == "python")
    module = {"__name__": "example"}
    exec(compile(example, "docs/scheduler.md", "exec"), module)
    place, host = module["place"], module["Host"]
    calls = []

    class Watched(host):
        """Notes what is asked and answered; and the first answer to a POST is lost."""

        def call(self, method, path, body=None, key=None):
            answer = super().call(method, path, body, key)
            calls.append((self.path, method, key, *answer))
            if method == "POST" and [call[1] for call in calls].count("POST") == 1:
                raise ConnectionResetError
            return answer

    def posts():
        return [(path, status) for path, method, _, status, _ in calls if method == "POST"]

    _, info = host(roomy).call("GET", "/v1/host")
    (image,) = info["images"]
    with tempfile.TemporaryDirectory() as directory:
        # One that was never there, and one that nobody listens to any more.
        absent = os.path.join(directory, "absent")
        stale = os.path.join(directory, "stale")
        with module["socket"].socket(module["socket"].AF_UNIX) as listener:
            listener.bind(stale)
        dead = [absent, stale]
        job = {"id": "17", "image": image, "memoryMB": 1024}

        module["Host"] = Watched
        path, sandbox = place([*dead, roomy], job)
        expect(path == roomy, "where it was placed", path)
        expect(posts() == [(roomy, 201)] * 2, "an answer that was lost is asked for again, with the same key", calls)
        _, found = host(roomy).call("GET", "/v1/sandboxes?metadata.job=17")
        expect([each["id"] for each in found["sandboxes"]] == [sandbox], "sandboxes of the job", found)
        (found,) = found["sandboxes"]
        expect(found["image"] == image and found["state"] == "running", "what was made", found)
        expect(3500 < found["expiresAt"] - time.time() <= 3600, "when what is forgotten ends", found)

        # The full one says that it has room for it, until it is asked.
        calls.clear()
        path, other = place([*dead, full, roomy], {**job, "id": "18"})
        # The first answer was lost again. A refusal for want of room is not kept with its key: it was asked anew.
        expect(path == roomy, "where it was placed", path)
        expect(posts() == [(full, 503), (full, 503), (roomy, 201)], "who was asked", calls)
        error = next(answer["error"] for *_, status, answer in calls if status == 503)
        expect(error["code"] == "insufficient_capacity", "why it was refused", error)
        expect(error["details"]["fitSandboxes"] == 0, "how many would fit", error)

        why = refused(place, [*dead, full], job)
        expect(why == "no host has room", "only the full one", why)
        why = refused(place, dead, job)
        expect(why == "no host has room", "only dead ones", why)
        why = refused(place, [roomy], {**job, "image": "0" * 32})
        expect(why == "no host has room", "an image that is nowhere", why)
        host(roomy).call("POST", "/v1/host/drain", {"draining": True})
        why = refused(place, [roomy], job)
        host(roomy).call("POST", "/v1/host/drain", {"draining": False})
        expect(why == "no host has room", "one that takes nothing", why)

        for each in (sandbox, other):
            status, _ = host(roomy).call("DELETE", f"/v1/sandboxes/{each}")
            expect(status == 204, "deleted", status)
        _, info = host(roomy).call("GET", "/v1/host")
        expect(info["sandboxes"] == 0, "sandboxes are left", info)
    print("the scheduler's example: placed, asked again, refused where it is full; dead hosts passed over")


# `sys.exit` in the shell's place: what it began is ended.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
try:
    {"tutorial": tutorial, "scheduler": scheduler}[sys.argv[1]](*sys.argv[2:])
except Wrong as wrong:
    sys.exit(f"{sys.argv[1]}: {wrong}")
