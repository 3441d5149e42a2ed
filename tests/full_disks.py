"""Small disks that can really be full: a tmpfs in a mount namespace of its own, in which commands are run."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOLD = "mount -t tmpfs -o size={size} none {path} && echo mounted && exec sleep 3600"


@dataclass(frozen=True)
class Disk:
    """path: where commands that `run` starts see it; seen: where this process does."""

    path: Path
    seen: Path
    enter: tuple

    def run(self, command, cwd=".", **options):
        """subprocess.run with the disk in sight."""
        options = {"capture_output": True, "text": True, "timeout": 300, **options}
        return subprocess.run(self._inside(command, cwd), **options)

    def start(self, command, cwd=".", **options):
        """subprocess.Popen with the disk in sight."""
        return subprocess.Popen(self._inside(command, cwd), **options)

    def _inside(self, command, cwd):
        return [*self.enter, "env", f"--chdir={Path(cwd).absolute()}", *command]  # nsenter goes to /


class Disks:
    """Makes disks below `home`; `close` ends them. why_not: a sentence where this machine does not allow it."""

    def __init__(self, home):
        self.home, self.holders, self.why_not = home, [], None

    def make(self, megabytes):
        """A `Disk` of this size, None where `why_not` says why."""
        path = self.home / f"disk-{len(self.holders)}"
        path.mkdir()
        hold = HOLD.format(size=f"{megabytes}m", path=path)
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hold]
        if sys.platform != "linux":
            self.why_not = "only Linux has mount namespaces"
            return None
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.holders.append(holder)
        if holder.stdout.readline() != "mounted\n":
            holder.kill()
            self.why_not = f"no small disk can be mounted here: {holder.communicate()[1].strip()}"
            return None
        enter = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
        return Disk(path, Path(f"/proc/{holder.pid}/root{path}"), enter)

    def close(self):
        for holder in self.holders:
            holder.kill()
            holder.wait()
