"""Tests of operators, by what is promised of them. Which backend runs a case is a part of its id."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.on_shim", f"{__name__}.on_triton")
