"""Work in several sandboxes at once, on asyncio: `python many.py IMAGE`."""

import asyncio
import sys

from spore import AsyncSandbox


async def main(image: str) -> None:
    async with await AsyncSandbox.create_many(2, image=image, timeout_seconds=600) as sandboxes:
        results = await asyncio.gather(
            *(sandbox.exec(f"echo $(({number} * {number}))", check=True) for number, sandbox in enumerate(sandboxes, 6))
        )
        for result in results:
            print(result.stdout, end="")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
