"""How many files a process may have open."""

import resource

SPARE = 256
"""Open files of a process that are not shards, about."""
MOST = 1 << 16


def allow_open_files(wanted: int) -> int:
    """Raises this process's limit of open files, which its workers inherit, where it is too low for so many
    files of shards: as far as the system allows, to MOST at most. Returns how many it may open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY:
        return MOST
    if soft < min(wanted + SPARE, highest):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = highest
    return max(0, min(soft, MOST) - SPARE)
