"""How a scheduler asks a host: what is there, what would fit, what happens: `python place.py IMAGE`."""

import sys

from spore import Client, InsufficientCapacityError, Sandbox


def main(image: str) -> None:
    with Client() as client:
        host = client.host()
        here = client.get_image(image).id in host.images
        print("takes work:", not host.draining and host.memory.largest_fit_mb > 1024, "- image here:", here)
        try:
            with Sandbox.create(image=image, client=client, metadata={"job": "place"}, timeout_seconds=600) as sandbox:
                found = Sandbox.list(client=client, metadata={"job": "place"})
                print("found again:", sandbox.id in [one.id for one in found])
                print("counts processor time:", sandbox.usage().cpu_ms >= 0)
        except InsufficientCapacityError as error:
            print("try another host:", error.details)


if __name__ == "__main__":
    main(sys.argv[1])
