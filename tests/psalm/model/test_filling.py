"""Tensors are copied under their names, or nothing is."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from psalm.model.filling import fill
from psalm.model.key_report import KeyReport
from psalm.model.weight_files import Weights, open_weights

SOURCE = Path("/a/b.safetensors")


def halves(name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """``ab`` is ``a`` above ``b``, ``z`` has another name here, and the others are as they are."""
    if name == "ab":
        return dict(zip("ab", tensor.chunk(2), strict=True))
    return {{"z": "c"}.get(name, name): tensor}


def own() -> dict[str, Tensor]:
    return {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3), "c": torch.zeros(4), "d": torch.zeros(1)}


def filled(
    weights: Mapping[str, Tensor],
    into: Mapping[str, Tensor] | None = None,
    optional: Callable[[str], bool] = lambda name: name == "d",
) -> KeyReport:
    return fill(own() if into is None else into, weights, halves, SOURCE, optional=optional)


def test_every_name_is_accounted_for_and_every_tensor_has_its_place() -> None:
    both, c, into = torch.randn(4, 3), torch.randn(4), own()
    weights = {"ab": both, "z": c, "lm_head": torch.zeros(7), "layer.rotary_emb.inv_freq": torch.zeros(2)}
    report = filled(weights, into)
    assert report == KeyReport(SOURCE, ("a", "b", "c"), ("lm_head",), ("d",), ("layer.rotary_emb.inv_freq",))
    assert torch.equal(into["a"], both[:2])
    assert torch.equal(into["b"], both[2:])
    assert torch.equal(into["c"], c)
    assert not into["d"].any()


def test_numbers_are_converted_to_the_types_of_the_model() -> None:
    into, half = own(), torch.randn(4, 3, dtype=torch.float16)
    filled({"ab": half, "z": torch.ones(4, dtype=torch.bfloat16)}, into)
    assert torch.equal(into["a"], half[:2].float())
    assert {tensor.dtype for tensor in into.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ab": torch.ones(4, 3), "z": torch.ones(5)}, r"/a/b.safetensors: z is \[5\] there, but \[4\] in the model$"),
        ({"ab": torch.ones(4, 3)}, "^/a/b.safetensors lacks 1 weights: c$"),
        ({"z": torch.ones(4)}, r"^/a/b.safetensors lacks 2 weights: \{a,b\}$"),
        ({"ab": torch.ones(4, 3), "z": torch.ones(4), "c": torch.ones(4)}, "z and c are both c; leave one of them out"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changed(weights: dict[str, Tensor], message: str) -> None:
    into = own()
    with pytest.raises(ValueError, match=message):
        filled(weights, into)
    assert not any(tensor.any() for tensor in into.values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"z holds {kind}, but weights must be float16, bfloat16 or float32$"):
        filled({"ab": torch.ones(4, 3), "z": torch.ones(4).to(dtype)})


def test_a_model_without_memory_is_checked_by_the_headers_of_files(tmp_path: Path) -> None:
    path, into = tmp_path / "a.safetensors", {name: tensor.to("meta") for name, tensor in own().items()}
    save_file({"ab": torch.ones(4, 3), "z": torch.ones(4)}, path)
    stored = open_weights(path)

    def refuse(name: str) -> Tensor:
        raise AssertionError(f"{name} is read")

    weights = Weights(path, stored.shapes(), refuse)
    assert filled(weights, into) == filled(stored, own())
    with pytest.raises(AssertionError, match="ab is read"):
        filled(weights, own())


def test_one_tensor_is_in_memory_at_a_time() -> None:
    class Reading(Mapping[str, Tensor]):
        def __init__(self) -> None:
            self.last: Callable[[], object] = lambda: None

        def __getitem__(self, name: str) -> Tensor:
            assert self.last() is None
            numbers = np.ones((4, 3) if name == "ab" else 4)  # lives as long as any view of it
            self.last = weakref.ref(numbers)
            return torch.from_numpy(numbers)

        def __iter__(self) -> Iterator[str]:
            return iter(("ab", "z"))

        def __len__(self) -> int:
            return 2

    filled(Reading())
