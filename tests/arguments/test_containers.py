"""Containers of arrays: those that are accepted, and that results have the same structure."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastclip
from support import oracle
from support.dtypes import dtype_id


class Layer(NamedTuple):
    weight: Any
    bias: Any


def tensor(value: float = 3.0) -> Any:
    return np.full(4, value, np.float32)


def clip(structure: Any) -> Any:
    return fastclip.clip_by_global_norm(structure, 1.0)[0]


# --- structures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [[tensor(), tensor()], (tensor(), tensor())], ids=["list", "tuple"])
def test_flat_list_or_tuple_gives_a_list(flat: Any) -> None:
    got = clip(flat)
    assert type(got) is list
    assert len(got) == 2


def test_dict_gives_a_dict_in_the_same_order() -> None:
    got = clip({"z": tensor(), "a": tensor(1.0), 3: None, ("k",): tensor()})
    assert type(got) is dict
    assert list(got) == ["z", "a", 3, ("k",)]
    assert got[3] is None
    assert got["z"][0] > got["a"][0] > 0


def test_named_tuple_gives_the_named_tuple() -> None:
    got = clip(Layer(weight=tensor(), bias=None))
    assert type(got) is Layer
    assert got.bias is None
    np.testing.assert_allclose(got.weight, 0.5)


def test_nested_structures_are_returned_with_the_same_types() -> None:
    structure = {
        "encoder": [Layer(tensor(), tensor()), Layer(tensor(), None)],
        "decoder": (tensor(), [tensor(), {}], ()),
        "none": None,
    }
    got, norm = fastclip.clip_by_global_norm(structure, 1.0)
    assert norm == pytest.approx(np.sqrt(5 * 36), rel=1e-7)
    assert list(got) == ["encoder", "decoder", "none"]
    assert type(got["encoder"]) is list
    assert type(got["encoder"][1]) is Layer
    assert got["encoder"][1].bias is None
    assert type(got["decoder"]) is tuple
    assert type(got["decoder"][1]) is list
    assert got["decoder"][1][1] == {}
    assert got["decoder"][2] == ()
    assert got["none"] is None
    np.testing.assert_allclose(got["decoder"][1][0], 3 / np.sqrt(180), rtol=1e-6)


def test_nested_list_and_tuple_at_the_top() -> None:
    got = clip([(tensor(),), [tensor()]])
    assert type(got) is list
    assert type(got[0]) is tuple
    assert type(got[1]) is list
    got = clip((tensor(), [tensor()]))
    assert type(got) is tuple
    assert type(got[1]) is list


def test_subclass_of_dict() -> None:
    got = clip(OrderedDict([("b", tensor()), ("a", tensor())]))
    assert isinstance(got, dict)
    assert list(got) == ["b", "a"]


def test_order_of_leaves_is_that_of_the_structure() -> None:
    structure = {"b": [tensor(1), tensor(2)], "a": tensor(3)}
    np.testing.assert_allclose(fastclip.tensor_norms(structure), [2, 4, 6])


def test_structure_of_inputs_is_not_changed() -> None:
    arrays = [tensor(), None, [tensor()]]
    copy = list(arrays)
    clip(arrays)
    assert all(x is y for x, y in zip(arrays, copy, strict=True))


def test_array_listed_twice_contributes_twice_and_has_two_outputs() -> None:
    array = tensor()
    got, norm = fastclip.clip_by_global_norm([array, array], 1.0)
    assert norm == pytest.approx(np.sqrt(72), rel=1e-7)
    assert not np.shares_memory(got[0], got[1])


# --- empty containers and None ------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [[], ()], ids=repr)
def test_empty_list_or_tuple(nothing: Any) -> None:
    got, norm = fastclip.clip_by_global_norm(nothing, 1.0)
    assert got == []
    assert type(got) is list
    assert type(norm) is np.float32
    assert norm == 0
    assert fastclip.clip_by_block_rms(nothing, 1.0) == []
    assert fastclip.adaptive_clip(nothing, nothing) == []


def test_only_none() -> None:
    got, norm = fastclip.clip_by_global_norm([None, None], 1.0)
    assert got == [None, None]
    assert type(norm) is np.float32
    assert norm == 0
    got, norm = fastclip.clip_by_global_norm({"a": None}, 1.0)
    assert got == {"a": None}
    assert norm == 0
    assert fastclip.clip_by_global_norm({}, 1.0)[0] == {}


def test_none_is_kept_and_does_not_contribute_to_the_norm() -> None:
    with_none, norm = fastclip.clip_by_global_norm([None, tensor(), None, tensor()], 1.0)
    without, same_norm = fastclip.clip_by_global_norm([tensor(), tensor()], 1.0)
    assert norm == same_norm
    assert with_none[0] is None
    assert with_none[2] is None
    assert oracle.same_bits(with_none[1], without[0])
    assert fastclip.clip_by_block_rms([None, tensor()], 1.0)[0] is None


# --- arguments that are no containers -----------------------------------------------------------

CALLS = {
    "clip_by_global_norm": lambda t: fastclip.clip_by_global_norm(t, 1.0),
    "clip_by_global_norm(use_norm)": lambda t: fastclip.clip_by_global_norm(t, 1.0, 1.0),
    "global_norm": fastclip.global_norm,
    "tensor_norms": fastclip.tensor_norms,
    "clip_by_block_rms": lambda t: fastclip.clip_by_block_rms(t, 1.0),
}
EVERY_CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@EVERY_CALL
@pytest.mark.parametrize(
    "wrong",
    [
        "abc",
        "",
        b"abc",
        np.ones(3),
        np.ones((2, 2)),
        np.array(1.0),
        np.float32(1),
        1.0,
        1,
        None,
        object(),
        memoryview(b"12345678"),
        fastclip.IndexedSlices(np.ones((1, 2)), np.array([0])),
    ],
    ids=lambda w: type(w).__name__,
)
def test_arguments_that_are_no_containers_are_type_errors(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match="t_list"):
        call(wrong)


@EVERY_CALL
@pytest.mark.parametrize(
    "wrong", [(x for x in [np.ones(2)]), iter([np.ones(2)]), map(np.abs, [np.ones(2)])], ids=str
)
def test_generators_are_type_errors_whose_message_asks_for_a_list(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        call(wrong)


@EVERY_CALL
@pytest.mark.parametrize("wrong", ["abc", object(), {1, 2}, b"x"], ids=repr)
def test_error_for_a_leaf_that_is_no_array_names_its_position(call: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"t_list\[1\]"):
        call([np.ones(2), wrong])
    with pytest.raises(TypeError, match=r"t_list\['b'\]\[0\]"):
        call({"a": np.ones(2), "b": [wrong]})


def test_generator_in_a_structure_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"t_list\[1\]"):
        clip([np.ones(2), (x for x in [np.ones(2)])])


def test_errors_of_adaptive_clip_name_its_arguments() -> None:
    with pytest.raises(TypeError, match="params"):
        fastclip.adaptive_clip(np.ones(2), [np.ones(2)])
    with pytest.raises(TypeError, match="grads"):
        fastclip.adaptive_clip([np.ones(2)], np.ones(2))


def test_structure_that_contains_itself_is_an_error() -> None:
    loop: list[Any] = [np.ones(2)]
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)):
        clip(loop)


def test_deep_nesting() -> None:
    deep: Any = tensor()
    for _ in range(60):
        deep = [deep]
    got = clip(deep)
    for _ in range(60):
        assert type(got) is list
        got = got[0]
    np.testing.assert_allclose(got, 0.5)


def test_numbers_as_leaves() -> None:
    assert fastclip.global_norm([3.0, 4.0]) == 5
    assert fastclip.global_norm([[3.0], {"x": np.float32(4)}]) == 5
    got, norm = fastclip.clip_by_global_norm([3.0, 4.0], 1.0)
    assert type(norm) is np.float64
    np.testing.assert_allclose([float(x) for x in got], [0.6, 0.8], rtol=1e-14)


# --- registered containers ----------------------------------------------------------------------


class Registered:
    """A container that is registered with optree."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left = left
        self.right = right


def test_pytrees_registered_with_optree() -> None:
    optree = pytest.importorskip("optree")
    everywhere = getattr(optree.registry, "__GLOBAL_NAMESPACE")
    optree.register_pytree_node(
        Registered,
        lambda node: ((node.left, node.right), None),
        lambda _, children: Registered(*children),
        namespace=everywhere,
    )
    try:
        tree = {"z": Registered(tensor(), None), "a": [Registered(tensor(), [tensor()])]}
        got, norm = fastclip.clip_by_global_norm(tree, 1.0)
        assert norm == pytest.approx(np.sqrt(3 * 36), rel=1e-7)
        assert list(got) == ["z", "a"]
        assert type(got["z"]) is Registered
        assert got["z"].right is None
        np.testing.assert_allclose(got["a"][0].right[0], 3 / np.sqrt(108), rtol=1e-6)
        top = clip(Registered(tensor(), tensor()))
        assert type(top) is Registered
        out: Any = {"z": Registered(tensor(0), None), "a": [Registered(tensor(0), [tensor(0)])]}
        fastclip.clip_by_global_norm(tree, 1.0, out=out)
        assert oracle.same_bits(out["a"][0].left, got["a"][0].left)
    finally:
        optree.unregister_pytree_node(Registered, namespace=everywhere)


def test_containers_that_optree_registers_itself() -> None:
    pytest.importorskip("optree")
    got = clip({"x": deque([tensor(), None, (tensor(),)])})
    assert type(got["x"]) is deque
    assert got["x"][1] is None
    assert type(got["x"][2]) is tuple
    np.testing.assert_allclose(got["x"][0], 3 / np.sqrt(72), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8"], ids=dtype_id)
def test_each_output_has_the_dtype_of_its_input(dtype: str) -> None:
    got = clip([np.ones(3, dtype), np.ones(3, np.float64), np.ones(2, np.float16)])
    assert [x.dtype for x in got] == [np.dtype(dtype), np.float64, np.float16]


def test_dicts_of_collections_keep_their_class_order_and_factory() -> None:
    ordered = OrderedDict((name, np.full(2, float(i), np.float32)) for i, name in enumerate("abc"))
    ordered.move_to_end("a")
    clipped, norm = fastclip.clip_by_global_norm(ordered, 1.0)
    assert type(clipped) is OrderedDict
    assert list(clipped) == ["b", "c", "a"]
    assert list(reversed(clipped)) == ["a", "c", "b"]
    for name, entry in ordered.items():
        np.testing.assert_array_equal(clipped[name], entry / norm)
    clipped.move_to_end("b")
    assert list(clipped) == ["c", "a", "b"]

    nested: defaultdict[str, Any] = defaultdict(list, {"x": defaultdict(None, y=np.ones(2))})
    (result, _) = fastclip.clip_by_global_norm([nested], 1.0)
    assert type(result[0]) is defaultdict
    assert result[0].default_factory is list
    assert type(result[0]["x"]) is defaultdict
    assert result[0]["x"].default_factory is None


def test_ordered_dict_with_attributes_keeps_them() -> None:
    state: Any = OrderedDict(w=np.ones(2))
    state.version = 7
    clipped, _ = fastclip.clip_by_global_norm({"layer": state}, 1.0)
    assert clipped["layer"].version == 7
    assert "version" not in clipped["layer"]
