"""What makes some of the fuzzer's calls meet what is there: schemathesis makes up ids and names, which nobody has.

SPORE_FUZZ_SANDBOX and SPORE_FUZZ_IMAGE name a sandbox and an image of the daemon; without them no names are changed.
"""

import os
import random

import schemathesis

SANDBOX = os.environ.get("SPORE_FUZZ_SANDBOX")
IMAGE = os.environ.get("SPORE_FUZZ_IMAGE")
# The same run after run, as far as the calls are.
CHOICE = random.Random(5)


def _often() -> bool:
    return CHOICE.random() < 0.7


# What is asked for instead of so much more that the host has it all the same: a boot, growth, a fork each.
QUICK = {"finalizeMemoryMB": (512, 65536), "memoryMB": (512, 16384), "cpus": (1, 16), "count": (1, 64)}


def _quick(name, value):
    quick, most = QUICK.get(name, (0, 0))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return quick if is_number and quick < value <= most else value


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    operation = context.operation
    if SANDBOX and path_parameters and _often():
        if operation.path.startswith("/v1/sandboxes/{id}"):
            return {**path_parameters, "id": SANDBOX}
        if operation.path.startswith("/v1/images/{") and IMAGE:
            return {name: IMAGE for name in path_parameters}
    return path_parameters


@schemathesis.hook
def map_body(context, body):
    operation = context.operation
    if IMAGE and operation.path == "/v1/sandboxes" and isinstance(body, dict) and _often():
        body = {name: value for name, value in body.items() if name != "checkpoint"}
        body = {**body, "image": IMAGE}
    # What may be asked for and takes minutes where guests are interpreted. What may not goes through.
    if isinstance(body, dict):
        body = {name: _quick(name, value) for name, value in body.items()}
    # It would end before all others have met it.
    if operation.path == "/v1/sandboxes/{id}" and isinstance(body, dict):
        return {name: value for name, value in body.items() if "imeoutSeconds" not in name}
    return body
