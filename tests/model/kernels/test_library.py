"""Which kernels run on which CPU."""

import pytest

from xlmr_ray.model.kernels import library
from xlmr_ray.model.kernels.library import ARGUMENTS, available


def test_bfloat16_needs_its_instructions(monkeypatch: pytest.MonkeyPatch):
    """Ice Lake has AVX-512 and VNNI, and would stop at the first conversion to bfloat16."""
    monkeypatch.setattr(library, "library", lambda: object())
    for has, wanted in (
        ({"avx512_vnni": True, "avx512_bf16": False}, {"attend_float32"}),
        ({"avx512_bf16": True}, set(ARGUMENTS)),
        ({}, {"attend_float32"}),
    ):
        monkeypatch.setattr(library, "cpu_capabilities", lambda has=has: has)
        assert {name for name in ARGUMENTS if available(name)} == wanted
    monkeypatch.setattr(library, "library", lambda: None)
    assert not any(map(available, ARGUMENTS))


def test_a_library_that_cannot_be_used_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """No file, no library, or one that an older source was compiled to."""
    path = tmp_path / "libkernels.so"
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(library, "LIBRARY", path)
    for content in (None, b"no library"):
        if content:
            path.write_bytes(content)
        library.library.cache_clear()
        assert library.library() is None
    monkeypatch.setattr(library, "LIBRARY", "libc.so.6")
    library.library.cache_clear()
    assert library.library() is None
    library.library.cache_clear()
