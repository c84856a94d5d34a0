"""Find the added tokens in a text: rows that hold one are left to another engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_sdg.text.gpu.target import function


@function
def begins_added(chars: Any, i: int, end: int, added: Any) -> bool:
    """Tell whether the first bytes of an added token stand at `i`: then one may begin there."""
    for number in range(len(added)):
        length = np.int64(added[number, 0])
        if end - i < length:
            continue
        same = 0
        while same < length and chars[i + same] == added[number, 1 + same]:
            same += 1
        if same == length:
            return True
    return False
