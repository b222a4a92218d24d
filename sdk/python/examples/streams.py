"""Hear what a command writes while it runs, and talk with one: `python streams.py IMAGE`."""

import sys

from spore import Sandbox


def main(image: str) -> None:
    with Sandbox.create(image=image, timeout_seconds=600) as sandbox:
        result = sandbox.exec_stream(
            "for step in 1 2 3; do echo step $step; done; echo done >&2",
            on_stdout=lambda text: print(text, end=""),
        )
        print("standard error:", result.stderr.strip())

        with sandbox.exec_interactive("while read line; do echo you said $line; done; exit 7") as talk:
            talk.send_stdin("hello\n")
            talk.close_stdin()
            for output in talk:
                print(output.data.decode(), end="")
            assert talk.result is not None
            print("exit code:", talk.result.exit_code)


if __name__ == "__main__":
    main(sys.argv[1])
