"""Sets off every bomb in this process, which has `fuzzing.MEMORY` bytes for each, and tells what came of it.

python tests/helpers/bomb_worker.py FOLDER
"""

import json
import resource
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]

from bombs import bombs  # noqa: E402
from fuzzing import limited_memory  # noqa: E402

from pipeline.errors import PipelineError  # noqa: E402


def peak() -> int:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(folder: Path) -> None:
    start = peak()
    for number, (name, bomb, refused) in enumerate(bombs()):
        place, answer = folder / str(number), "read"
        place.mkdir()
        try:
            with limited_memory():
                bomb(place)
        except PipelineError:
            answer = "refused"
        except BaseException as err:  # noqa: BLE001 - the test looks at it
            answer = f"{type(err).__name__}: {err!s:.200}"
        result = {"name": name, "answer": answer, "wanted": "refused" if refused else "read"}
        print(json.dumps(result | {"mib": peak() - start}), flush=True)
        for path in place.iterdir():
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
