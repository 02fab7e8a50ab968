"""A worker of a peer that does not exist: speaks the protocol, and can be told to fail.

python fake_worker.py well | dies | hangs | refuses | breaks
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(how: str) -> None:
    turns = 0
    if how == "breaks":
        raise SystemExit("the library is broken")
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, object] = {}
        if asked["do"] == "build":
            if how == "refuses":
                answer = {"error": "MemoryError: too large"}
            else:
                answer = {"build_s": 0.5, "bytes_per_sample": 8.0, "versions": {"fake": "1.0"}}
        elif asked["do"] == "batch":
            answer = {"uniforms": "ascending"}
        elif asked["do"] == "turn":
            turns += 1
            if how == "dies" and turns > 40:
                print("terminate called", file=sys.stderr, flush=True)
                os._exit(3)
            if how == "hangs":
                time.sleep(3600)
            answer = {"draw_us": 2.0, "update_us": 1.0}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
