"""Run commands in a sandbox of an image, and move files in and out: `python hello.py IMAGE`."""

import sys

from spore import Sandbox


def main(image: str) -> None:
    with Sandbox.create(image=image, timeout_seconds=600) as sandbox:
        sandbox.files.write("/tmp/greet.sh", "#!/bin/sh\necho hello from $(cat name)\n", mode=0o755)
        sandbox.files.write("/tmp/name", "a sandbox")
        print(sandbox.exec("./greet.sh | tee said", cwd="/tmp", check=True).stdout, end="")
        print(sandbox.files.read_text("/tmp/said"), end="")


if __name__ == "__main__":
    main(sys.argv[1])
