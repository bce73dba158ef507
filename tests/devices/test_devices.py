"""Nothing that sites and the server compute is bound to the CPU: `on_device.py` on a stand-in for a GPU.

In a process of its own, since torch can't forget a device.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAST = 50  # tests


def test_sites_and_the_server_compute_on_another_device_what_they_compute_on_the_cpu() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/devices/on_device.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed, _, rest = done.stdout.strip().splitlines()[-1].partition(" passed")
    assert int(passed) >= LEAST
    assert "skipped" not in rest
