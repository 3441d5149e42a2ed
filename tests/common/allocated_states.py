"""One of two ranks: trains a small Llama under each ZeRO stage and writes which tensors there are, in bytes, at which moment.

    RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python tests/common/allocated_states.py DIRECTORY

Into DIRECTORY go RANK.json and DeepSpeed's checkpoints.
"""

import gc
import json
import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
         "vocab_size": 2048, "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip
RUNS = {"zero-1": (1, False), "zero-2": (2, False), "zero-3": (3, False), "zero-2 offload": (2, True), "zero-3 offload": (3, True)}
REDUCE, PREFETCH, LIVE, REUSE, PERSISTENT, ACCUMULATION, OVERLAP = 600_000, 100_000, 1_000_000, 0, 1000, 2, True
LEAST = 128  # bytes that a tensor must have to be counted: neither a counter of steps nor the frequencies of positions


class Seen:
    """Bytes of all tensors of this process, by dtype, but for those that were there before."""

    def __init__(self):
        self.before, self.moments = {}, {}
        self.before = self._storages([])

    def look(self, moment, parameters):
        """Keep what there is now, unless there was more at the same moment of another tensor."""
        total = Counter()
        for dtype, size in self._storages(parameters).values():
            total[dtype.removeprefix("torch.")] += size if size >= LEAST else 0
        self.moments[moment] = max(self.moments.get(moment, total), total, key=Counter.total)

    def _storages(self, parameters):
        import torch

        gc.collect()
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and thing.is_floating_point()]
        found += [p.grad for p in parameters if p.grad is not None]  # no object of Python until it is asked for
        storages = {t.untyped_storage().data_ptr(): (str(t.dtype), t.untyped_storage().nbytes()) for t in found}
        return {address: facts for address, facts in storages.items() if self.before.get(address) != facts}


def make(stage, offload):
    """(engine, token ids): a Llama of random bf16 weights under ZeRO, AdamW on two groups as the Trainer makes them."""
    import deepspeed
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).bfloat16()
    zero = {"stage": stage, "overlap_comm": OVERLAP, "contiguous_gradients": True, "reduce_bucket_size": REDUCE,
            "stage3_prefetch_bucket_size": PREFETCH, "stage3_max_live_parameters": LIVE, "stage3_max_reuse_distance": REUSE,
            "stage3_param_persistence_threshold": PERSISTENT} | ({"offload_optimizer": {"device": "cpu"}} if offload else {})  # fmt: skip
    config = {"bf16": {"enabled": True}, "zero_optimization": zero, "zero_allow_untested_optimizer": True, "gradient_clipping": 1.0,
              "zero_force_ds_cpu_optimizer": False, "train_micro_batch_size_per_gpu": 1,
              "gradient_accumulation_steps": ACCUMULATION}  # fmt: skip
    groups = [{"params": [p for p in model.parameters() if (p.ndim == 1) == norm]} for norm in (False, True)]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=1e-3, fused=True), config=config)
    return engine, torch.randint(SHAPE["vocab_size"], (1, 8), generator=torch.Generator().manual_seed(0))


def train(stage, offload, directory):
    """What was seen in the second of two steps; also how many weights were "gathered" at once, and what is saved of "frozen" ones."""
    seen = Seen()
    engine, ids = make(stage, offload)
    parameters, gathered = list(engine.module.parameters()), [0]

    def look(moment):
        return lambda *_: seen.look(moment, parameters)

    def count(*_):
        whole = [p.ds_numel for p in parameters if p.ds_status.name != "NOT_AVAILABLE" and not p.ds_persist]
        gathered[0] = max(gathered[0], sum(whole))

    def backward():
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)

    for _ in range(ACCUMULATION):
        backward()
        engine.step()
    backward()
    look("between")()
    engine.step()
    for module in engine.module.modules() if stage == 3 else ():
        module.register_forward_hook(count)
        module.register_full_backward_pre_hook(count)
    engine.module.model.embed_tokens.weight.register_hook(look("backward"))
    engine.optimizer.optimizer.register_step_pre_hook(look("step"))
    with reductions(stage, look("reduction")):
        backward()
    engine.step()
    look("after")()
    engine.save_checkpoint(directory, tag="all")
    engine.module.model.requires_grad_(False)
    of_frozen = engine.module_state_dict(exclude_frozen_parameters=True) if stage < 3 else {}
    frozen = sum(tensor.nbytes for tensor in of_frozen.values())
    engine.destroy()
    engine.optimizer.__dict__.clear()
    return seen.moments | {"gathered": gathered[0], "frozen": frozen}


@contextmanager
def reductions(stage, look):
    """Look each time that gradients are sent."""
    from deepspeed import comm

    name = "reduce_scatter_fn" if stage == 3 else "all_reduce"
    send = getattr(comm, name)

    def looked(*args, **kwargs):
        look()
        return send(*args, **kwargs)

    setattr(comm, name, looked)
    yield
    setattr(comm, name, send)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 - what imports leave is not looked through each time
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    found = {name: train(*kind, Path(sys.argv[1]) / name) for name, kind in RUNS.items()}
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    deepspeed.comm.barrier()  # who leaves first takes the other one's connection away
    os._exit(0)  # gloo's threads abort some orderly ends
