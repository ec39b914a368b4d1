"""The kernel for few classes on tensor cores beside the reference."""

import re
from dataclasses import replace

import emulated_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import (
    H100,
    RARE,
    SHAPE,
    assert_an_epoch_equals_the_reference,
    make_case,
    nvrtc,
    run,
)

from skmax import kernels
from skmax.backends.cupy import CupyBackend
from skmax.kernels import cuda, few_classes
from skmax.kernels.few_classes import PARAMETERS, Plan, builds


@pytest.fixture
def always(monkeypatch):
    """What the kernel can do, it does, wherever another would be as fast."""
    monkeypatch.setattr(few_classes, "_is_worthwhile", lambda *_: True)


def on(build):
    """What a plan is made with, so that it has this build."""
    return lambda device, size, k, d, m: build


@st.composite
def shapes(draw):
    """What `make_case` needs, and a build that serves it."""
    build = draw(st.sampled_from([b for b in builds() if b.CLUSTER == 8]))
    k = draw(st.sampled_from([k for k in (2, 3, 9, 10, 13, 20, 32) if k <= build.CLASSES]))
    dtypes = {1: [np.uint8, np.int8, np.bool_], 2: [np.float16], 4: [np.float32]}
    copied = {1: 4, 2: 2, 4: 1}[build.DATA_BYTES]
    steps, batch = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 16, 33, 64, 65, 130]))
    return build, {
        "m": draw(st.integers(1, 2)),
        "k": k,
        "n": max(k, batch * steps - draw(st.integers(0, batch // 2))),
        "d": copied * draw(st.integers(1, 40)),
        "dtype": draw(st.sampled_from(dtypes[build.DATA_BYTES])),
        "batch": batch,
        "rare": draw(st.sets(st.sampled_from(sorted({*RARE} - {"shift", "F-ordered"})))),
    }
