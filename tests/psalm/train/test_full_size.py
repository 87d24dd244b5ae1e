"""The whole model at full size, on a GPU where there is one, else on a CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "experiments" / "scripts" / "full_size.py"


@pytest.mark.full_size
def test_two_steps_at_full_size_take_the_memory_that_was_estimated(coco_real: Path, tmp_path: Path) -> None:
    """Weights are written (3.4 GB), unless PSALM_FULL_WEIGHTS names a folder that has them."""
    weights = os.environ.get("PSALM_FULL_WEIGHTS", str(tmp_path / "weights"))
    run = subprocess.run(
        [sys.executable, SCRIPT, "--panoptic_json_path", coco_real, "--weights", weights],
        env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(re.findall(r"^step \d: loss [\d.]+, loss_mask [\d.]+, ", run.stdout, re.MULTILINE)) == 2
    peaks = dict(re.findall(r"^(.+): peak .+, ratio (.+)$", run.stdout, re.MULTILINE))
    assert float(peaks["training"]) == pytest.approx(1, abs=0.2)
