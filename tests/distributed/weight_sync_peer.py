"""A receiver in a process of its own, driven by JSON lines; not a test."""

import hashlib
import json
import os
import sys

import torch

from actors.sync_plan import Manifest, SyncInit, WeightSyncError
from actors.sync_tensors import flat_bytes
from actors.sync_transport import WeightReceiver


def say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    torch.set_num_threads(1)
    receiver: WeightReceiver | None = None
    say({"pid": os.getpid()})
    for line in sys.stdin:
        order = json.loads(line)
        got: dict[str, str] = {}

        def load(tensors, got=got) -> None:
            for name, t in tensors:
                digest = hashlib.sha256(flat_bytes(t).numpy().tobytes()).hexdigest()
                got[name] = f"{tuple(t.shape)} {t.dtype} {digest}"

        try:
            if order["do"] == "join":
                if receiver is not None:
                    receiver.close()
                manifest = Manifest.from_json(order["manifest"])
                receiver = WeightReceiver(manifest, SyncInit.from_json(order["init"]))
                answer: dict[str, object] = {}
            elif order["do"] == "receive":
                assert receiver is not None
                stats = receiver.receive(order["version"], order["hash"], load)
                answer = {"got": got, "checksums": stats.checksums}
            else:
                assert receiver is not None
                receiver.close()
                answer = {}
        except WeightSyncError as error:
            answer = {"error": str(error)}
        say(answer)


if __name__ == "__main__":
    main()
