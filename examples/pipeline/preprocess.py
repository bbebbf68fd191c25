"""The first step: reads measurements, leaves out broken lines, scales, and splits into a training and a test set.

It is short, so it keeps no checkpoint: when it is interrupted it begins anew.
"""

import csv
import json
import statistics
from pathlib import Path

RAW, OUT = Path("raw"), Path("out")


def main():
    """Read, clean, scale, split, write."""
    rows, broken = [], 0
    with (RAW / "measurements.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append(([float(row["x"]), float(row["y"])], int(row["label"])))
            except ValueError:
                broken += 1
    columns = list(zip(*(features for features, _ in rows), strict=True))
    scale = [(statistics.fmean(column), statistics.pstdev(column)) for column in columns]
    scaled = [
        {"features": [(value - mean) / spread for value, (mean, spread) in zip(features, scale, strict=True)],
         "label": label}
        for features, label in rows
    ]  # fmt: skip
    OUT.mkdir(exist_ok=True)
    (OUT / "test.json").write_text(json.dumps(scaled[::4]))
    (OUT / "train.json").write_text(json.dumps([row for number, row in enumerate(scaled) if number % 4]))
    print(f"{len(rows)} rows, {broken} broken ones left out", flush=True)


if __name__ == "__main__":
    main()
