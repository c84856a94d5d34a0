"""Write `nemo_sdg/text/gpu/classes.npz` anew, for the version of `tokenizers` that is installed."""

from __future__ import annotations

import numpy as np
import tokenizers

from nemo_sdg.text.gpu.classes import FILE, pack, probe

if __name__ == "__main__":
    table = pack(probe())
    np.savez_compressed(FILE, tokenizers=tokenizers.__version__, **table._asdict())
    print(f"{FILE}: {FILE.stat().st_size} bytes, {table.kinds.size // 128} blocks")
