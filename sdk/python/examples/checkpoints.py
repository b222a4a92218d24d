"""Keep a sandbox as it is, end it, and go on later: `python checkpoints.py IMAGE`."""

import sys

from spore import Client, Sandbox


def main(image: str) -> None:
    with Sandbox.create(image=image, timeout_seconds=600) as sandbox:
        sandbox.files.write("/note", "kept\n")
        checkpoint = sandbox.checkpoint()
    try:
        with Sandbox.from_checkpoint(checkpoint, timeout_seconds=600) as again:
            print(again.files.read_text("/note"), end="")
    finally:
        Client.shared().delete_checkpoint(checkpoint.id)


if __name__ == "__main__":
    main(sys.argv[1])
