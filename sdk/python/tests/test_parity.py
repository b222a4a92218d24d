"""The two halves say the same, and all of it is documented."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import spore

PAIRS = [
    (spore.Client, spore.AsyncClient),
    (spore.Sandbox, spore.AsyncSandbox),
    (spore.SandboxGroup, spore.AsyncSandboxGroup),
    (spore.Files, spore.AsyncFiles),
    (spore.ExecStream, spore.AsyncExecStream),
]


def public(kind: type[Any]) -> dict[str, Any]:
    return {name: item for name, item in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_halves_have_the_same_methods_with_the_same_arguments(one: type[Any], other: type[Any]) -> None:
    assert public(one).keys() == public(other).keys()
    for name in public(one):
        ours, theirs = getattr(one, name), getattr(other, name)
        if not callable(ours):
            continue
        for mine, its in zip(*(inspect.signature(item).parameters.values() for item in (ours, theirs))):
            assert (mine.name, mine.kind, mine.default) == (its.name, its.kind, its.default), name
            said = re.sub(r"\bAsync(?=[A-Z])", "", str(its.annotation))
            said = re.sub(r"Listener\[(\w+)\]", r"Callable[[\1], object]", said)
            assert str(mine.annotation) == said, name


def test_all_that_is_public_is_documented() -> None:
    for name in spore.__all__:
        item = getattr(spore, name)
        if not inspect.isclass(item):
            continue
        assert item.__doc__, name
        for method, found in public(item).items():
            if callable(found) or isinstance(found, (classmethod, property)):
                assert inspect.getdoc(getattr(item, method)), f"{name}.{method}"


def test_the_package_has_its_version_and_its_types() -> None:
    from importlib import metadata, resources

    assert metadata.version("spore") == spore.__version__
    assert (resources.files("spore") / "py.typed").is_file()
    assert set(spore.__all__) <= set(dir(spore))
