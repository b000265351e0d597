"""`make lock`: writes lock.txt, every package that the other files pin or need, with the hashes of its files on PyPI.

torch is left out, and what its CUDA builds bring: it comes from different indices for different machines.
"""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
FILES = ("build.txt", "test.txt", "compare.txt", "docs.txt", "lint.txt")
OF_TORCH = re.compile("torch==|triton==|nvidia-|cuda-")
HEAD = """\
# What `make LOCKED=1 ...` installs: every package, with the hashes of its files on PyPI. torch is not among them, nor
# what its CUDA builds bring: it comes from different indices for different machines. Made by `make lock`.
"""

command = ["uv", "pip", "compile", *(str(FOLDER / name) for name in FILES), "--generate-hashes", "--quiet"]
command += ["--no-annotate", "--no-header", "--python-platform", "x86_64-unknown-linux-gnu", "--python", sys.executable]
found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
packages = re.split(r"(?m)^(?=[a-zA-Z])", found)[1:]
(FOLDER / "lock.txt").write_text(HEAD + "".join(p for p in packages if not OF_TORCH.match(p)), encoding="utf-8")
