"""Launch a module in processes of its own, without torch.

Run as `-m support.plain_launcher -m MODULE FILE`. MODULE is `support.plain_launcher` too: its
process does what `steps` in FILE say.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1] == "-m":
        done = subprocess.run([sys.executable, *sys.argv[1:]])
        if done.returncode == -signal.SIGKILL:
            print("a process ended with SIGKILL")
        sys.exit(done.returncode != 0)
    file = Path(sys.argv[1])
    for step, value in json.loads(file.read_text())["steps"]:
        if step == "print":
            print(value, flush=True)
        elif step == "report":
            file.with_name("error.txt").write_text(value)
        elif step == "exit":
            sys.exit(value)
        elif step == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
