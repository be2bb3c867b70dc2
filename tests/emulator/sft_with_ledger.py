"""The Llama example's fine-tuning, as its command does it; in the end each process prints which kernels ran, as JSON.

python tests/emulator/sft_with_ledger.py --FLAG=VALUE ...
"""

from __future__ import annotations

import json

import fusionkit as fk
from examples.llama2_13b.io.flags import main
from examples.llama2_13b.sft import PROGRAM, SftFlags, sft

if __name__ == "__main__":
    try:
        main(SftFlags, sft, PROGRAM)
    finally:
        print(json.dumps({"ledger": list(fk.ledger())}), flush=True)
