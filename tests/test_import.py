import subprocess
import sys

HEAVY = ("anndata", "scanpy", "open_clip", "arviz", "matplotlib", "sklearn")
PROGRAM = f"""
import sys, time
start = time.process_time()  # of this process alone: the machine may be busy
import probinterp
seconds = time.process_time() - start
print(seconds, *[name for name in {HEAVY!r} if name in sys.modules])
"""


def imported():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stdout.split()
    return float(seconds), loaded


def test_import_is_light(capsys):
    seconds, loaded = imported()
    with capsys.disabled():
        print(f" [import probinterp: {seconds:.2f} s] ", end="")
    assert loaded == []
    assert seconds < 3.5
