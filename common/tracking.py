"""TensorBoard and W&B: where they write, under which name, and W&B without an account."""

import netrc
import os
import secrets
from pathlib import Path

from common.log import say


def prepare(report_to, run, previous_id=None):
    """Set the environment that transformers' reporters read; returns the W&B run id, None without W&B.

    Without a key W&B writes offline files into the run directory, and it is said how to upload them. previous_id:
    the id of the run that is resumed, which is continued.
    """
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)
    if "wandb" not in report_to:
        return None
    if os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and not _logged_in():
        os.environ["WANDB_MODE"] = "offline"
        offline = f"{run.wandb}/wandb/offline-run-*"
        say(f"W&B is not logged in (no WANDB_API_KEY, no `wandb login`): it writes offline; later: wandb sync {offline}")
    run_id = previous_id or secrets.token_hex(4)
    os.environ.setdefault("WANDB_PROJECT", "unsloth-recipes")
    os.environ.update(WANDB_DIR=str(run.wandb), WANDB_RUN_ID=run_id, WANDB_RESUME="allow", WANDB_NAME=run.path.name, WANDB_SILENT="true")
    run.wandb.mkdir(parents=True, exist_ok=True)
    return run_id


def _logged_in():
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
