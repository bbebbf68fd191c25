"""A PyTorch training that may be killed at any moment, and ends with the same weights.

    python train.py --epochs 30          # by hand: writes state/ and out/ here
    python train.py --epochs 30          # again: goes on where state/ ends

What makes it so:
- The checkpoint holds everything that the rest of the training depends on: weights, optimizer, schedule, the epoch, and
  the state of the random numbers. Forget one, and a resumed training still works, but is another one.
- It is written under another name and renamed: whoever reads it finds the old one or the new one, never half of one.
- "commit" in KELPIE_REPORT says when it is whole. SIGTERM is a request to finish the epoch, save, and end with 75.

On a GPU nothing changes but `device`; bit for bit the same takes the same model of GPU.
"""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it alone
import torch

STATE, OUT = Path("state"), Path("out")  # the directories of the job definition, in run.py
REPORT = Path(os.environ.get("KELPIE_REPORT", os.devnull))
RUN_ME_AGAIN = 75  # exit code: "I have saved, run me again"

told_to_stop = threading.Event()


def save(checkpoint, path):
    """Replace the checkpoint as a whole."""
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # before the rename: a power failure must not leave an empty file
    draft.replace(path)


def load(path):
    """The last checkpoint, or None at the first start."""
    if not path.exists():
        return None
    # To the CPU first: the next node may have another number of GPUs, and random states live on the CPU.
    return torch.load(path, map_location="cpu", weights_only=True)


def report(**fields):
    """Tell kelpie: it shows the progress, and takes a checkpoint where "commit" says so."""
    with REPORT.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def on_sigterm(_signum, _frame):
    """Only note it: in a signal handler the training may be in the middle of a step."""
    told_to_stop.set()


def make_data(count):
    """Two moons; yours would come from an input directory."""
    angle = torch.rand(count) * torch.pi
    label = torch.randint(0, 2, (count,))
    x = torch.cos(angle) * (1 - 2 * label) + label
    y = torch.sin(angle) * (1 - 2 * label) + label * 0.5
    return torch.stack([x, y], dim=1) + 0.15 * torch.randn(count, 2), label


def main():
    """Train the epochs that are left, and write the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, on_sigterm)
    for folder in (STATE, OUT):
        folder.mkdir(exist_ok=True)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in a fixed order; a real model on a CPU wants more

    points, labels = (part.to(device) for part in make_data(2000))
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 64),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 2),
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)

    start, losses = 0, []
    checkpoint = load(STATE / "checkpoint.pt")
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        start, losses = checkpoint["epoch"], checkpoint["losses"]
        torch.set_rng_state(checkpoint["rng"])
        if device == "cuda":
            # As many as there are here: the node before may have had more GPUs, or none.
            for number, numbers in zip(range(torch.cuda.device_count()), checkpoint["cuda_rng"], strict=False):
                torch.cuda.set_rng_state(numbers, number)
    print(f"starting at epoch {start} on {device}", flush=True)

    for epoch in range(start, args.epochs):
        total = 0.0
        for batch in torch.randperm(len(points)).to(device).split(100):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(points[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        losses.append(total / len(points))
        save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch + 1,
                "losses": losses,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state_all() if device == "cuda" else [],
            },
            STATE / "checkpoint.pt",
        )
        report(progress=(epoch + 1) / args.epochs, message=f"epoch {epoch + 1}, loss {losses[-1]:.4f}", commit=True)
        if told_to_stop.is_set():
            sys.exit(RUN_ME_AGAIN)

    model.eval()
    with torch.no_grad():
        accuracy = (model(points).argmax(dim=1) == labels).float().mean().item()
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, OUT / "model.pt")
    (OUT / "metrics.json").write_text(json.dumps({"accuracy": accuracy, "losses": losses}))
    print(f"accuracy {accuracy:.3f}", flush=True)


if __name__ == "__main__":
    main()
