"""The data plane: check the arrays, run the network on them. It knows no protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from seisserve_serving.calls import Call
from seisserve_serving.lanes import Later
from seisserve_serving.models import Served

__all__ = ["predict"]


def predict(
    served: Served, inputs: Mapping[str, NDArray[Any]], signature: str, output_filter: Sequence[str], call: Call
) -> Later[dict[str, NDArray[Any]]]:
    """The outputs that are asked for (all without a filter), computed when the call's turn comes.

    signature: by name, the usual one if empty. Raises UsageError that names the field at fault, and as `Queue.predict`.
    """
    chosen = served.signature(signature)
    chosen.check_inputs(inputs)
    names = chosen.check_outputs(list(output_filter), "output_filter")
    wanted = list(output_filter) or names
    return served.later(chosen.key, inputs, call).then(lambda outputs: {name: outputs[name] for name in wanted})
