"""Run as one of two ranks: an optimiser step of a small network under each ZeRO stage, and the bytes it hands to torch's collectives.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=… python counted_collectives.py '[{"zero_stage": 2, …}, …]'

Rank 0 prints as JSON what a ring of two sends for each case: the bytes of an all-reduced tensor, half those of a gathered or scattered one.
"""

import json
import sys

import deepspeed
import torch
from deepspeed.comm.torch import TorchBackend

WIDTH, LAYERS = 128, 6
sent = dict.fromkeys(("all_reduce", "inference_all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "reduce",
                      "reduce_scatter", "broadcast", "all_to_all_single"), 0)  # fmt: skip


def largest(value):
    """Bytes of the largest tensor, or list of tensors, among the arguments: the whole of what is exchanged."""
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    return sum(map(largest, value)) if isinstance(value, (list, tuple)) else 0


def count(name):
    exchange = getattr(TorchBackend, name)

    def counted(*args, **kwargs):
        sent[name] += max(map(largest, [*args, *kwargs.values()])) * (1 if "all_reduce" in name else 0.5)
        return exchange(*args, **kwargs)

    setattr(TorchBackend, name, counted)


def network(trains_base):
    layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    for layer in layers[:-1]:
        layer.requires_grad_(trains_base)
    return torch.nn.Sequential(*layers)


def step(zero_stage, gradient_accumulation_steps, trains_base, max_reuse_distance):
    """Bytes sent in the second step of a run: the first one, in which stage 3 learns the order of the modules, is not counted."""
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": gradient_accumulation_steps, "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero_stage, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0,
                              "stage3_max_reuse_distance": max_reuse_distance},
    }  # fmt: skip
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=zero_stage == 3):
        model = network(trains_base)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for _ in range(2):
        sent.update(dict.fromkeys(sent, 0))
        for _ in range(gradient_accumulation_steps):
            engine.backward(engine(torch.ones(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)).float().pow(2).mean())
            engine.step()
    return sum(sent.values())


deepspeed.init_distributed("gloo", verbose=False)
for name in sent:
    count(name)
found = [step(**case) for case in json.loads(sys.argv[1])]
if torch.distributed.get_rank() == 0:
    print(json.dumps(found))
torch.distributed.destroy_process_group()
