"""How busy the GPUs are, asked beside the training: nvidia-smi takes a tenth of a second, and a GPU that waits for it is idle."""

import threading

from common import hardware


class GpuLoad:
    """Asks every `seconds` between `start` and `end`; ends by itself where nvidia-smi does not tell. A second `start` ends the first."""

    def __init__(self, seconds=5):
        self.seconds, self.shares, self.ended = seconds, [], threading.Event()

    def start(self):
        self.end()
        self.ended = threading.Event()
        threading.Thread(target=self._ask, args=[self.ended], name="gpu_load", daemon=True).start()

    def end(self):
        self.ended.set()

    def since_last(self):
        """The share of the time in which the GPUs computed since the last call; None where nothing was asked since."""
        shares, self.shares = self.shares, []
        return sum(shares) / len(shares) if shares else None

    def _ask(self, ended):
        left = 1  # failures until it is given up: of a machine that told once, and may be busy, more
        while not ended.is_set():
            share = hardware.utilisation()
            left = left - 1 if share is None else 10
            if not left:
                break
            self.shares += [] if share is None else [share]
            ended.wait(self.seconds)
