"""Gathers the blocks: their mean, and how sure it is.

It runs when all blocks have completed (the body of a Celery chord): KELPIE_PARENTS holds their results, and blocks/
what they stored.
"""

import json
import math
import os
import statistics
from pathlib import Path

BLOCKS, OUT = Path("blocks"), Path("out")


def main():
    """Read what the blocks stored, and write the result."""
    found = [json.loads(path.read_text()) for path in sorted(BLOCKS.glob("*/block.json"))]
    parents = os.environ.get("KELPIE_PARENTS")
    if parents:
        (results,) = json.loads(Path(parents).read_text())  # of a chord's body: one list of all blocks' results
        if len(results) != len(found):
            raise SystemExit(f"{len(results)} blocks completed, and {len(found)} are here")
    volumes = [block["volume"] for block in found]
    mean, error = statistics.fmean(volumes), statistics.stdev(volumes) / math.sqrt(len(volumes))
    OUT.mkdir(exist_ok=True)
    (OUT / "result.json").write_text(json.dumps({"volume": mean, "error": error, "blocks": len(volumes)}))
    print(f"{mean:.4f} +- {error:.4f}; exactly {math.pi**3 / 6:.4f}", flush=True)


if __name__ == "__main__":
    main()
