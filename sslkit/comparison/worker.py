"""One run of a comparison in a process of its own: `python -m sslkit.comparison.worker`.

A process per run, because peak memory on a CPU is that of the process, and because what a run
leaves behind (compiled code, warm allocators, torch's settings) must not reach the next arm.
Standard input holds one line, a JSON object with `recipe` and `overrides`; when it ends, the
process that waits for this one is gone, and this one stops at once. The last line of standard
output is a JSON object with `run_dir` and `status`, or with `error`.
"""

from __future__ import annotations

import json
import os
import sys
import threading


def main() -> int:
    """Makes the run, going on with an unfinished one. Returns the exit code."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    from sslkit.engine.display import make_display
    from sslkit.errors import SSLKitError
    from sslkit.plugin_errors import describe_failure
    from sslkit.runs import start

    try:
        result = start(
            asked["recipe"], asked["overrides"], resume="auto", display=make_display(sys.stderr)
        )
    except SSLKitError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    except Exception as error:  # a plugin's, or ours: its run folder keeps the traceback
        print(json.dumps({"error": describe_failure(error)}))
        return 1
    print(json.dumps({"run_dir": str(result.run_dir), "status": result.status}))
    return 0


def _stop_with_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock Python wants as it ends
        pass
    os._exit(1)  # as after kill -9: the next command goes on from the last checkpoint


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first step: nothing is lost
        sys.exit(130)
