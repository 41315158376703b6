"""The package in environments poorer than the tests' own."""

import subprocess
import sys


def test_import_is_lazy_and_works_without_numpy_and_assertions() -> None:
    code = (
        "import sys, muonlab; heavy = 'torch' in sys.modules\n"
        "sys.modules['numpy'] = sys.modules['triton'] = None\n"
        "import torch; from muonlab.optim import catalog\n"
        "w = torch.nn.Parameter(torch.eye(3)); w.grad = torch.eye(3)\n"
        "for name in catalog.names():\n"
        "    optimizer = catalog.get(name)([w]); optimizer.observe(1.0); optimizer.step()\n"
        "try: muonlab.Muon([w], lr=-1)\n"
        "except ValueError: pass\n"
        "else: sys.exit(3)\n"
        "sys.exit(2 if heavy or not muonlab.__version__ else 0)\n"
    )
    command = [sys.executable, "-O", "-W", "error::UserWarning:muonlab", "-c", code]
    assert subprocess.run(command, check=False).returncode == 0
