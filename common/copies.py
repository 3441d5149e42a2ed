"""The copies of a run's checkpoints, on this disk and verified in a store where there is one. None goes before another is safe."""

import shutil
import threading
from contextlib import suppress
from pathlib import Path

from common import manifest, remote_runs, storage
from common.log import say, warn
from common.refusal import Refusal
from common.run_directory import read_json, step_of
from common.uploads import Uploads


class Copies:
    """Uploads committed checkpoints and removes old ones. For rank 0; every other rank has one that does nothing.

    run: RunDirectory; limit: how many checkpoints stay on this disk, the best one besides; uri: the store, None for none;
    keep_local: False removes from this disk what is verified in the store, but for the newest and the best.
    """

    def __init__(self, run, limit, uri=None, keep_local=True, active=True):
        self.run, self.limit, self.uri, self.keep_local, self.active = run, limit, uri, keep_local, active
        self.uploads = Uploads(uri, run.path.name, read_json(run.run, {}).get("run_id")) if uri and active else None
        self._seen_safe, self._said_failed = 0, set()

    def begin(self, checkpoint=None):
        """Send what an interrupted run had not; what is in the store already is not sent again. What a resume abandons is marked there."""
        if not self.uploads:
            return
        try:
            if checkpoint is not None:
                remote_runs.abandon_newer(storage.open_store(self.uri), self.run.path.name, step_of(checkpoint))
        except storage.StorageError as error:
            warn(f"newer checkpoints of another line may still be in the store ({error}); \"auto\" on another disk would take them")
        self._send_files()
        for _, whole in self.run.whole_checkpoints():
            self.uploads.submit(whole, whole.name)

    def committed(self, checkpoint, best):
        """A checkpoint was committed: upload it, and what failed before; remove what is too many. best: path of the best one, or None."""
        if self.uploads:
            self.uploads.retry_failed()
            self._send_files()
            self.uploads.submit(checkpoint, checkpoint.name)
        self.prune(best)

    def prune_what_is_safe(self, best):
        """`prune` where an upload has ended since, and say which have failed; cheap enough for every step."""
        if not self.uploads:
            return
        for key, why in self.uploads.failed().items():
            if key not in self._said_failed:
                self._said_failed.add(key)
                warn(f"{key} could not be stored: {why}; it is tried again at the next save and at the end")
        if len(self.uploads.safe()) != self._seen_safe:
            self.prune(best)

    def prune(self, best):
        """Remove the oldest beyond the limit; never the best, and none before a newer one is committed, and uploaded where that is on."""
        if not self.active:
            return
        whole = self.run.whole_checkpoints()
        safe, failed = (self.uploads.safe(), self.uploads.failed()) if self.uploads else (set(), {})
        self._seen_safe = len(safe)
        for index, (_, path) in enumerate(whole[:-1]):
            too_many = index < len(whole) - self.limit
            newer_is_safe = not self.uploads or any(newer.name in safe for _, newer in whole[index + 1 :])
            settled = not self.uploads or path.name in safe or path.name in failed  # not under way
            stored = not self.keep_local and path.name in safe
            if path.name != Path(best or "").name and newer_is_safe and (stored or (too_many and settled)):
                with suppress(OSError):  # somebody removed it
                    path.rename(path.with_name(f".pruned-{path.name}"))  # in one move no checkpoint any more
                if self.uploads:
                    self.uploads.withdraw(path.name)  # where it failed, it will not be tried again
        for gone in self.run.path.glob(".pruned-*"):  # also what an interrupted run did not finish
            threading.Thread(target=shutil.rmtree, args=[gone, True]).start()  # hundreds of GB take their time

    def wait(self):
        """Wait until everything is in the store; {key: why} of what is not safe there."""
        if not self.uploads:
            return {}
        self.uploads.retry_failed()
        self._send_files()
        unsafe = self.uploads.wait(say=say)
        self.run.update(uploads_blocked_seconds=round(self.uploads.blocked_seconds, 4))
        if not unsafe:
            say(f"everything is verified in {self.uri}; uploading held the training up for {self.uploads.blocked_seconds:.2f} s in all")
        return unsafe

    def finish(self, directories, best, command):
        """Upload the saved models in `directories` as well, wait for all, and end the uploading; `Refusal` where something is not safe.

        command: what to type to have the rest uploaded.
        """
        if not self.uploads:
            return
        for directory in directories:
            manifest.write(directory, {name: manifest.describe(directory / name) for name in manifest.files_in(directory)})
            self.uploads.submit(directory, directory.name)
        unsafe = self.wait()
        self.prune(best)
        self.uploads.close()
        self.uploads = None
        if unsafe:
            listed = "; ".join(f"{key}: {why}" for key, why in sorted(unsafe.items()))
            raise Refusal(f"training is done and everything is in {self.run.path}, but not all of it is in the store ({listed}). Nothing "
                          f"was removed here; {command} trains nothing more and uploads the rest")  # fmt: skip

    def _send_files(self):
        paths = {name: self.run.path / name for name in remote_runs.FILES}
        self.uploads.submit_files({name: path for name, path in paths.items() if path.is_file()})
