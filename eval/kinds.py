"""The two kinds of runs, and what judges each: models that answer questions by `judging`, pretrained ones by `pretrained`."""

from common import measures
from common.run_directory import read_json


def of(run):
    """The module that judges this run; it has saved_models(run), require_rows(run, limit), Judge(run, options) and HAS_BASE."""
    if measures.is_pretraining(read_json(run.run, {})):
        import pretrained

        return pretrained
    import judging

    return judging
