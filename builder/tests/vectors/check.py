#!/usr/bin/env python3
"""Check content-hash.json with nothing but the standard library; with --write, fill in what it should say.

The content hash of a manifest is SHA-256 over the RFC 8785 canonical JSON of {base, steps}. This is the whole
of that for manifests: a valid one has no number in base or steps, so none need printing. A vector with
"valid": false is of something that only the canonicaliser has to take.
"""

import hashlib
import json
import pathlib
import sys

VECTORS = pathlib.Path(__file__).with_name("content-hash.json")


def canonical(value):
    if isinstance(value, dict):
        # RFC 8785 section 3.2.3: keys in the order of their UTF-16 code units.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(canonical(key) + ":" + canonical(value[key]) for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    raise TypeError(f"{value!r} cannot be in a valid manifest's base or steps")


def main():
    vectors = json.loads(VECTORS.read_text("utf-8"))
    wrong = 0
    for vector in vectors:
        text = canonical({key: vector["manifest"][key] for key in ("base", "steps")})
        found = {"canonical": text, "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}
        for key, value in found.items():
            if vector.get(key) != value:
                wrong += 1
                print(f"{vector['name']}: {key} is {vector.get(key)!r} and should be {value!r}")
        vector.update(found)
    if "--write" in sys.argv[1:]:
        VECTORS.write_text(json.dumps(vectors, ensure_ascii=True, indent=1) + "\n", "utf-8")
    elif wrong:
        sys.exit(1)
    print(f"{len(vectors)} vectors checked")


main()
