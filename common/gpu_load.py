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
        while not ended.is_set() and (share := hardware.utilisation()) is not None:
            self.shares.append(share)
            ended.wait(self.seconds)
