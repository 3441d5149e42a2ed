"""The tasks of token_tasks.py as steps of a datatrove pipeline. In a module of their own: a Slurm job unpickles them by its name."""

from datatrove.pipeline.base import PipelineStep

from common import token_tasks


class TokenShards(PipelineStep):
    """datatrove's view of one task: reads no documents from the step before, hands none on."""

    name, type = "token shards", "TOKENIZER"

    def __init__(self, tasks, settings):
        super().__init__()
        self.tasks, self.settings = tasks, settings

    def run(self, data=None, rank=0, world_size=1):
        for task in self.tasks[rank::world_size]:
            with self.track_time(unit="task"):
                facts = token_tasks.run(task, self.settings)
            for key in ("documents", "tokens", "text_bytes"):
                self.stat_update(key, value=facts[key], unit="task")
            for reason, count in facts["skipped"].items():
                self.stat_update(f"left out: {reason}", value=count, unit="task")
        return data or ()


class Totals(PipelineStep):
    """Writes index.json when all tasks are done."""

    name, type = "totals", "TOKENIZER"

    def __init__(self, tasks, settings):
        super().__init__()
        self.tasks, self.settings = tasks, settings

    def run(self, data=None, rank=0, world_size=1):
        print(token_tasks.in_words(token_tasks.finish(self.tasks, self.settings), self.settings.output))
        return data or ()
