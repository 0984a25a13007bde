"""What the machine has is read off the driver's program and /proc."""

from pathlib import Path

import pytest

from pdr_graph.servers.vllm import Gpu, available_gib, gpus, has_fast_bfloat16

H100 = Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024)


@pytest.fixture
def smi(tmp_path: Path) -> str:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        "echo '0, GPU-aa11, NVIDIA H100 80GB HBM3, 81559'\n"
        "echo '1, GPU-bb22, NVIDIA H100 80GB HBM3, 81559'\n"
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("visible", "number"), [(None, 2), ("0", 1), ("0,1", 2), ("GPU-bb", 1), ("", 0), ("-1", 0)]
)
def test_gpus_that_a_process_would_see(smi, visible, number):
    """CUDA_VISIBLE_DEVICES hides GPUs by index or by the beginning of their name."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus(environment, smi) == [H100] * number


def test_no_driver(tmp_path):
    """Without the program, or where it fails, there is no GPU."""
    failing = tmp_path / "smi"
    failing.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    failing.chmod(0o755)
    assert gpus({}, str(tmp_path / "none")) == []
    assert gpus({}, str(failing)) == []


def test_processor_and_memory(tmp_path):
    """Flags and memory are those of /proc; a machine without it tells nothing."""
    file = tmp_path / "file"
    assert not has_fast_bfloat16(file)
    assert available_gib(file) is None
    file.write_text("flags : fpu avx2 avx512_bf16\nMemAvailable:  8388608 kB\n")
    assert has_fast_bfloat16(file)
    assert available_gib(file) == 8.0
