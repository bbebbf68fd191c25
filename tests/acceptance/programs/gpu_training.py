"""Trains a small language model on a GPU, the same bit for bit however often it is killed; ``gpu_training.py``.

It takes hold of most of the GPU's memory before anything else, as a training that was fitted to its GPU does: were an
attempt that its worker has lost still there, the next one on this GPU would end with CUDA's out-of-memory error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it alone
import torch

STATE, OUT = Path("state"), Path("out")
REPORT = Path(os.environ.get("KELPIE_REPORT", os.devnull))
RUN_ME_AGAIN = 75
WORDS, WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 4096, 512, 8, 6, 256, 16

told = threading.Event()


def hold(share: float) -> torch.Tensor:
    """Take hold of the GPU's memory.

    Raises:
        torch.OutOfMemoryError: Somebody else has it.
    """
    total = torch.cuda.get_device_properties(0).total_memory
    return torch.empty(int(total * share), dtype=torch.uint8, device="cuda")


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.places = torch.nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.register_buffer("mask", torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.layers(self.words(words) + self.places, mask=self.mask)
        return hidden @ self.words.weight.T


def save(checkpoint: dict[str, Any]) -> None:
    draft = STATE / "checkpoint.new"
    with draft.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(STATE / "checkpoint.pt")


def say(**fields: object) -> None:
    with REPORT.open("a") as file:
        file.write(json.dumps(fields) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--hold", type=float, default=0.6, help="More than half: two of these do not fit on one GPU.")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    for folder in (STATE, OUT):
        folder.mkdir(exist_ok=True)
    held = hold(args.hold)
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    model = Model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    start = 0
    if (STATE / "checkpoint.pt").exists():
        checkpoint = torch.load(STATE / "checkpoint.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        torch.set_rng_state(checkpoint["rng"])
        torch.cuda.set_rng_state(checkpoint["cuda_rng"])
        start = checkpoint["step"]
    print(f"from step {start} on {torch.cuda.get_device_name(0)}", flush=True)
    loss = torch.zeros(())
    for step in range(start + 1, args.steps + 1):
        words = torch.randint(0, WORDS, (BATCH, 1), device="cuda") + torch.arange(CONTEXT + 1, device="cuda")
        words %= WORDS
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            guess = model(words[:, :-1])
        loss = torch.nn.functional.cross_entropy(guess.float().flatten(0, 1), words[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        if step % args.every == 0 or told.is_set():
            save({
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state(),
            })  # fmt: skip
            say(progress=step / args.steps, message=f"step {step}, loss {loss.item():.4f}", commit=True)
        if told.is_set() and step < args.steps:
            sys.exit(RUN_ME_AGAIN)
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, OUT / "model.pt")
    print(f"loss {loss.item():.6f}", flush=True)
    del held


if __name__ == "__main__":
    main()
