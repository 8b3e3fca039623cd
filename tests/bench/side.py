"""One side of a comparison as a process: python -m tests.bench.side ours|peer WORK MODEL FOLDER [VARIANT]."""

import sys
from pathlib import Path

if __name__ == "__main__":
    kind, name, model, folder, *variant = sys.argv[1:]
    if kind == "ours":
        from tests.bench import ours

        ours.main(name, Path(model), Path(folder))
    else:
        from tests.bench import peers

        peers.main(name, Path(model), Path(folder), variant[0] if variant else "")
