"""What stands in for the command `vllm serve`: its options and protocol, in front of a tiny model.

`VLLM_TOLD` names a file that gets its process id and its arguments. With `VLLM_FATE` it does not
come up: it `ends` with a complaint, or `hangs`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent


def install(folder: Path) -> str:
    """Put a command `vllm` into `folder`; what PATH has to be for it to be found."""
    folder.mkdir()
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = folder / "vllm"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} {Path(__file__)} "$@"\n'
    )
    command.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    Path(os.environ["VLLM_TOLD"]).write_text(json.dumps([os.getpid(), sys.argv[1:]]))
    match os.environ.get("VLLM_FATE"):
        case "ends":
            sys.exit("ValueError: no memory for the KV cache")
        case "hangs":
            print("loading weights", flush=True)
            time.sleep(600)
    import torch  # only now: what ends or hangs does so at once
    from token_server import TokenServer

    from toolwise.agent.transformers_engine import TransformersEngine

    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", type=Path)
    for name in ("port", "max-model-len", "tensor-parallel-size", "max-logprobs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--gpu-memory-utilization", type=float, required=True)
    parser.add_argument("--logprobs-mode", choices=["processed_logprobs"], required=True)
    parser.add_argument("--host", choices=["127.0.0.1"], required=True)
    told = parser.parse_args()
    torch.set_num_threads(1)
    engine = TransformersEngine.load(told.model)
    with TokenServer(engine, port=told.port, context=told.max_model_len):
        threading.Event().wait()


if __name__ == "__main__":
    main()
