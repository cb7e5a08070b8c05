"""Keeps apart what the ranks of several attempts write into one store.

torchrun's agent starts its ranks again after a failure. With a fixed port (`torchrun --master-port`) its
store stays the same, and has the addresses and notes of ranks that are gone: new ranks would call those.
"""

import time

from torch.distributed.distributed_c10d import PrefixStore, Store

_PAUSES = (0.02, 1.0)
"""Shortest and longest time in seconds between two questions to the store; each is half as long again."""


def own_attempt(store: Store, rank: int, size: int, seconds: float) -> PrefixStore:
    """The part of the store in which the ranks of this attempt meet, and no rank of another one.

    Rank 0 numbers the attempts. A rank that joined an attempt before is not of it: it waits for the next one,
    which rank 0 begins when it hears that while it waits for others.
    Raises TimeoutError where they are not all there within `seconds`.
    """
    end, pause, joined = time.monotonic() + seconds, _PAUSES[0], 0
    begun = store.add("attempts", int(rank == 0))
    while True:
        if begun > joined:
            if store.add(f"{begun}/{rank}", 1) == 1:
                joined = begun
            else:
                store.set(f"{begun}/again", "")
        awaited = [f"{joined}/{other}" for other in range(size)] if rank == 0 else [f"{joined}/all"]
        if joined and store.check(awaited):
            break
        if time.monotonic() > end:
            raise TimeoutError("not all ranks came to this attempt")
        time.sleep(pause)
        pause = min(1.5 * pause, _PAUSES[1])
        begun = store.add("attempts", int(rank == 0 and store.check([f"{joined}/again"])))
    if rank == 0:
        store.set(f"{joined}/all", "")
    return PrefixStore(str(joined), store)
