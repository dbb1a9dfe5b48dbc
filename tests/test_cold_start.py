"""How long a newcomer waits: CPU seconds of fresh processes, held with bounds of three times and more of what was measured."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}


@contextmanager
def spent():
    """A list that will hold the CPU seconds of the processes that have ended within."""
    before, found = resource.getrusage(resource.RUSAGE_CHILDREN), []
    yield found
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def genrec(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "genrec_hub", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_help_is_there_at_once():
    """Measured: .4 s."""
    with spent() as seconds:
        assert "recommend" in genrec("--help")
    assert seconds[0] < 1.5


def test_import_beside_transformers():
    """At most .3 s of CPU beyond transformers and torch themselves (measured: .2 s)."""
    code = (
        "import time, torch, transformers\nfrom transformers import AutoModel, pipeline\nstart = time.process_time()\nimport genrec_hub\n"
        "print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout) < 0.3


def test_the_command_line_answers_cold():
    """One recommendation from nothing, torch and model included (measured: 7 s)."""
    with spent() as seconds:
        assert json.loads(genrec("recommend", "argan oil shampoo", "-k", "1", "--json"))
    assert seconds[0] < 30


def test_the_app_is_up_cold():
    """From `python app.py` to a page (measured: 4 s; models load afterwards)."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with spent() as seconds:
        environment = {**ENVIRONMENT, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
        app = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.time() + 300
        page = ""
        while not page and time.time() < deadline and app.poll() is None:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read().decode()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        app.terminate()
        app.wait(timeout=60)
    assert "genrec_hub" in page
    assert seconds[0] < 15
