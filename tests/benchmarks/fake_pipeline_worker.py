"""A worker of an input pipeline that does not exist: speaks the protocol, and can be told to fail.

python fake_pipeline_worker.py well | refuses | dies
"""

from __future__ import annotations

import json
import os
import sys


def main(how: str) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, object] = {}
        if asked["do"] == "open":
            told = {"ahead": 2, "versions": {"fake": "1.0"}, "threads": asked["cores"]}
            answer = {"error": "TypeError: no strings"} if how == "refuses" else told
        elif asked["do"] == "take":
            if how == "dies":
                print("terminate called", file=sys.stderr, flush=True)
                os._exit(3)
            answer = {"us": 1000.0 * asked["steps"], "samples": 8 * asked["steps"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
