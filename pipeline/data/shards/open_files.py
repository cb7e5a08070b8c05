"""How many files a process may have open."""

import resource

SPARE = 256
"""Open files of a process that are not shards, about."""
MOST = 1 << 16


def allow_open_files(shards: int) -> None:
    """Raises this process's limit of open files, which its workers inherit, where it is too low for so many
    open shards: as far as the system allows, to MOST at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < min(shards + SPARE, highest):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
