"""Type aliases, and the letters that name dimensions everywhere in this project.

B  batch              H   query heads            V  vocabulary
S  query positions    K   key/value heads        N  layers
T  key positions      Dh  head_dim (einsum `e`)  R  LoRA rank
D  d_model            F   d_ff                   P  population (models trained side by side)

Einsum strings use the same letters in lower case.
"""

from typing import Any

import jax

Array = jax.Array
Params = dict[str, Any]  # nested dict of arrays; a leaf is named by its path, such as "blocks/wq"
