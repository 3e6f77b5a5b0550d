"""What a run will take, before it is started: bytes on every device, tokens, operations, time; the verb `sami-train plan`.

Weights, gradients and moments are counted from the model on the meta device. What a step holds besides is not guessed by a
formula per architecture: the trainer's own step runs on tensors that have shapes and no storage, and its live bytes are counted
(`rehearsal`). Nothing heavy is imported before it is used.
"""

from sami_train.planning.command import add_arguments, execute

__all__ = ["add_arguments", "execute"]
