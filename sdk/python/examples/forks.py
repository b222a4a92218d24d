"""Try several ways on from one prepared state: `python forks.py IMAGE`.

What is prepared once, files and processes and memory, is there in each fork, and none of them sees what another does.
"""

import sys

from spore import Sandbox


def main(image: str) -> None:
    with Sandbox.create(image=image, timeout_seconds=600) as parent:
        parent.exec("mkdir work && echo 40 >work/state", cwd="/", check=True)
        with parent.fork(2) as children:
            for number, child in enumerate(children, 1):
                child.exec(f"echo $(($(cat work/state) + {number})) >work/state", cwd="/", check=True)
            for child in [*children, parent]:
                print(child.files.read_text("/work/state"), end="")


if __name__ == "__main__":
    main(sys.argv[1])
