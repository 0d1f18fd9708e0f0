"""The Triton kernels without a GPU: what they compute by Triton's interpreter, and what its compiler makes of them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzzing import FACTOR

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


FILES = ("test_kernels.py", "test_sampled_kernels.py", "test_nested_bins.py")


def test_kernels_through_the_interpreter() -> None:
    # In a process of its own: triton, which anything may have imported, looks at the variable when it is imported.
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(Path(__file__).with_name, FILES)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300 * max(1, FACTOR),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "failed" not in result.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_compiled_16_bytes_go_at_a_time_nothing_spills_and_nothing_is_added_atomically(
    architecture: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton", minversion="3.3", reason="another face of the compiler")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rwc_wandb.measure.kernels import gpu, sampled_gpu, sampled_triton, triton_kernels

    def code(
        kernel: object, signature: dict[str, str], constants: dict[str, object], options: dict[str, object]
    ) -> str:
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        # What does not fit into registers is kept on the stack, in local memory.
        assert re.findall(r"(STACK|LOCAL):(\d+)", usage) == [("STACK", "0"), ("LOCAL", "0")], usage
        return compiled.asm["ptx"]

    element = {"ELEMENT": gpu.DTYPES[dtype], "BLOCK": gpu.BLOCK}
    chunks = code(triton_kernels.measure_chunks, {"table": "*i64", "sums": "*fp64"}, element, gpu._OPTIONS)
    limits = code(triton_kernels.limit_chunks, {"table": "*i64", "limits": "*fp32"}, element, gpu._LIMIT_OPTIONS)
    pointers = {"sums": "*fp64", "firsts": "*i64", "statistics": "*fp64"}
    layers = code(triton_kernels.sum_layers, pointers, {"BLOCK": gpu.LAYER_BLOCK}, gpu._LAYER_OPTIONS)
    atomic = re.compile(r"\b(atom|red)\.")
    assert not atomic.search(chunks + layers + limits)
    pointers = {"table": "*i64", "ranges": "*fp32", "counts": "*i64", "layers": "i32", "is_part": "i32"}
    histograms = code(triton_kernels.count_chunks, pointers, element | {"BINS": 64, "SLOTS": 64}, gpu._OPTIONS)
    assert atomic.search(histograms)
    values = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    element["BLOCK"] = sampled_gpu.CHUNK
    pointers = {"table": "*i64", "draw": "i32", "spreads": "*fp64", "snapshot": values, "sums": "*fp64"}
    measured = code(sampled_triton.measure_sample, pointers, element, sampled_gpu._OPTIONS)
    pointers = {"table": "*i64", "draw": "i32", "target": values}
    gathered = code(sampled_triton.gather_sample, pointers, element, sampled_gpu._OPTIONS)
    assert not atomic.search(measured + gathered)
    for kernel in (limits, histograms):
        assert "ld.global.v4.b32" in kernel
    # On its way to shared memory while another block is worked on.
    assert re.search(r"cp\.async\.cg\.shared\.global[^;]* 0x10", chunks)
    assert "st.global.v4.b32" in chunks
