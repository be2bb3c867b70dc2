"""Small models whose rows are whole blocks of 32, in floats, as GGUF files and as folders of codes."""

from __future__ import annotations

import json

from gguf import GGMLQuantizationType as Type

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.quantize import QuantizeFlags, quantize
from tests.llama.conftest import DATA, EXAMPLE
from tests.llama.gguf_files import write

# q and k of one type, v of another; the MLP's last matrix in floats.
TYPES = {"v_proj": Type.Q8_0, "down_proj": Type.F16, "embed_tokens": Type.Q4_0, "lm_head": Type.Q8_0}


def of_blocks(root, **changes):
    config = json.loads((EXAMPLE / "configs" / "tiny.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, **changes}
    (root / "config.json").write_text(json.dumps(config))
    create(CreateFlags(str(root / "config.json"), str(DATA), str(root / "model")))
    return root / "model"


def mixed_types(root, folder):
    return write(root / "model.gguf", folder, lambda name: TYPES.get(name.split(".")[-2], Type.Q4_1))


def quantized(source, tmp_path, *how):
    output = tmp_path / "quantized"
    assert quantize(QuantizeFlags(str(source), str(output), *how)) == 0
    return output
