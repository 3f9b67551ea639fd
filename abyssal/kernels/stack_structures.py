"""The structures of stack.h, field by field, as Python fills them."""

import ctypes

from abyssal.kernels.linear import MatStruct
from abyssal.kernels.registry import native

_I, _D, _P = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Feed(ctypes.Structure):
    """The three matrices of a SwiGLU."""

    _fields_ = [("gate", MatStruct), ("up", MatStruct), ("down", MatStruct)]


class Layer(ctypes.Structure):
    """One block."""

    _fields_ = [
        *((name, _P) for name in ("input_norm", "post_norm", "q_norm", "kv_norm")),
        *((name, MatStruct) for name in ("q_a", "q_b", "kv_a")),
        *((name, _P) for name in ("absorb", "keys", "values")),
        ("o", MatStruct),
        ("dense", Feed),
        ("router", MatStruct),
        ("bias", _P),
        ("experts", _P),
    ]


class Ahead(ctypes.Structure):
    """A multi-token prediction module."""

    _fields_ = [
        *((name, _P) for name in ("embed_norm", "hidden_norm", "norm")),
        ("join", MatStruct),
        ("layer", Layer),
    ]


class Model(ctypes.Structure):
    """A model."""

    _fields_ = [
        *((name, _I) for name in ("hidden", "heads", "nope", "rope", "value", "latent", "query")),
        *((name, _I) for name in ("vocab", "experts", "chosen", "groups", "kept_groups")),
        ("normalize", _I),
        *((name, _D) for name in ("eps", "latent_eps", "route_scale", "softmax_scale")),
        ("embed_kind", _I),
        *((name, _P) for name in ("embed", "cosine", "sine")),
        ("layers", _I),
        *((name, _P) for name in ("layer", "norm")),
        ("head", MatStruct),
        ("ahead", _P),
    ]


class Pool(ctypes.Structure):
    """The paged latent cache."""

    _fields_ = [
        ("base", _P),
        *((name, _I) for name in ("layer_stride", "page_stride", "kind", "C", "R")),
    ]


class Given(ctypes.Structure):
    """What a pass is given."""

    _fields_ = [
        *((name, _I) for name in ("tokens", "sequences", "threads", "absorbed")),
        *((name, _P) for name in ("token", "count", "start", "pages")),
        ("pool", Pool),
        *((name, _P) for name in ("before", "hidden", "met", "chosen")),
        ("scored", _I),
        *((name, _P) for name in ("scored_row", "scores")),
    ]


def check_layout() -> None:
    """Assert that the structures here are those of stack.h."""
    sizes = (ctypes.c_int64 * 5)()
    measure = native("stack_sizes")
    assert measure is not None, "there are no native kernels to check against"
    measure(ctypes.addressof(sizes))
    mine = [ctypes.sizeof(kind) for kind in (Model, Layer, Ahead, Given, MatStruct)]
    assert list(sizes) == mine, (list(sizes), mine)
