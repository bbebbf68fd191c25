"""The third step: how good the model is on rows that it has not seen."""

import json
from pathlib import Path

DATA, MODEL, OUT = Path("data"), Path("model"), Path("out")


def main():
    """Count what is right."""
    rows, weights = json.loads((DATA / "test.json").read_text()), json.loads((MODEL / "model.json").read_text())
    right = sum(
        (sum(w * x for w, x in zip(weights, [1.0, *row["features"]], strict=True)) > 0) == row["label"] for row in rows
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "metrics.json").write_text(json.dumps({"accuracy": right / len(rows), "rows": len(rows)}))
    print(f"{right} of {len(rows)} are right", flush=True)


if __name__ == "__main__":
    main()
