"""TensorBoard and W&B: where they write, under which name, and W&B without an account."""

import netrc
import os
import secrets
from pathlib import Path

from common.log import say


def prepare(report_to, run, previous_id=None, entity=None, project=None, run_name=None):
    """Set the environment that transformers' reporters read; returns the W&B run id, None without W&B.

    Without a key W&B writes offline files into the run directory, and it is said how to upload them. previous_id:
    the id of the run that is resumed, which is continued. The rest as W&B's own; None leaves it to its environment variables, the
    project then is unsloth-recipes, and the name the run directory's.
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
    os.environ |= {f"WANDB_{key}": value for key, value in (("PROJECT", project), ("ENTITY", entity)) if value}
    os.environ.update(WANDB_DIR=str(run.wandb), WANDB_RUN_ID=run_id, WANDB_RESUME="allow", WANDB_SILENT="true")
    os.environ["WANDB_NAME"] = run_name or run.path.name
    run.wandb.mkdir(parents=True, exist_ok=True)
    return run_id


def start(report_to, run_id, constants):
    """Begin the W&B run with the recipe's constants as its config; offline where the server refuses or cannot be reached."""
    if "wandb" not in report_to:
        return
    import wandb

    options = {"id": run_id, "resume": "allow", "name": os.environ["WANDB_NAME"], "config": constants, "dir": os.environ["WANDB_DIR"]}
    try:
        wandb.init(project=os.environ["WANDB_PROJECT"], **options)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        say(f"W&B refused ({str(error).splitlines()[0]}): it writes offline")
        wandb.init(project=os.environ["WANDB_PROJECT"], mode="offline", **options)


def finish(report_to):
    """Close the W&B run, so that a second run in this process has its own."""
    if "wandb" in report_to:
        import wandb

        wandb.finish()


def _logged_in():
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
