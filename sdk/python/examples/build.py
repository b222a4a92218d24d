"""Build an image and run a sandbox of it, with more memory than it was built to sleep with: `python build.py BASE`."""

import sys

from spore import BuildFailedError, Image, Sandbox


def main(base: str) -> None:
    image = (
        Image.base(base)
        .env({"GREETING": "hello"})
        .workdir("/app")
        .add_text("#!/bin/sh\necho $GREETING from an image\n", "/app/greet", mode=0o755)
        .run_commands("./greet >greeting")
        .builder_memory(512)
    )
    try:
        built = image.build(on_log=print)
    except BuildFailedError as error:
        sys.exit(f"{error.message}\nIf it was out of memory, raise builder_memory.")
    print("content hash:", built.content_hash == image.content_hash())
    with Sandbox.create(image=built, memory_mb=1280, timeout_seconds=600) as sandbox:
        print(sandbox.exec("./greet && cat greeting", check=True).stdout, end="")


if __name__ == "__main__":
    main(sys.argv[1])
