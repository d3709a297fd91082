"""torch.compile takes a pretraining step of the student as one graph, and computes the same."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import pytest
import torch
from torch import Tensor

from geomim import GeoMIM, GeoMIMConfig

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch, 'library', None), 'custom_op'), reason='torch < 2.4 has no operators of a package'
)


@pytest.mark.parametrize('recompute', [False, True])
def test_a_step_of_the_student_is_one_graph_and_computes_the_same(
    make_config: Callable[..., GeoMIMConfig],
    make_inputs: Callable[..., Any],
    make_rig: Callable[..., Any],
    recompute: bool,
) -> None:
    config = make_config(activation_checkpointing=recompute)
    inputs = make_inputs(config, make_rig())
    torch.manual_seed(0)
    model = GeoMIM(config).train()

    def step(**arguments: Any) -> Tuple[Tensor, Tensor]:
        output = model(**arguments)
        return output.reconstruction_loss, output.depth_loss

    torch._dynamo.reset()
    found = []
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for function in (step, torch.compile(step, backend='aot_eager', fullgraph=True)):
        model.load_state_dict(start)  # statistics of normalisation too
        model.zero_grad()
        losses = function(**inputs)
        sum(losses).backward()
        gradients: Dict[str, Any] = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append((losses, gradients))
    (losses, gradients), (compiled_losses, compiled_gradients) = found
    torch.testing.assert_close(compiled_losses, losses)
    torch.testing.assert_close(compiled_gradients, gradients, atol=1e-6, rtol=1e-4)
