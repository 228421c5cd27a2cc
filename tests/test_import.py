import subprocess
import sys

HEAVY = ("anndata", "scanpy", "open_clip", "arviz", "matplotlib", "sklearn")
PROGRAM = f"""
import sys, time
start = time.perf_counter()
import probinterp
seconds = time.perf_counter() - start
print(seconds, *[name for name in {HEAVY!r} if name in sys.modules])
"""


def imported():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_import_is_light(capsys):
    found = [imported()]
    while min(seconds for seconds, _ in found) >= 3.5 and len(found) < 3:
        found.append(imported())  # the machine may be busy
    seconds, loaded = min(found)
    with capsys.disabled():
        print(f" [import probinterp: {seconds:.2f} s] ", end="")
    assert loaded == []
    assert seconds < 3.5
