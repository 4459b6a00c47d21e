"""Beam search against that of transformers: it ends texts otherwise, so none end here."""

import numpy as np
import pytest
import tiny_models
from tiny_models import TOKENS

from jaxlm.decode.beam import beam_search
from jaxlm.interop.pretrained import load_weights
from jaxlm.models import transformer


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
def test_beams_without_an_end_are_those_of_transformers(length_penalty, tmp_path):
    torch, _ = tiny_models.peers()
    model = tiny_models.make("llama")
    model.save_pretrained(tmp_path)
    cfg, params = load_weights(tmp_path)
    got = beam_search(
        transformer.build(cfg),
        params,
        TOKENS,
        num_tokens=7,
        width=4,
        length_penalty=length_penalty,
    )
    prompts = torch.tensor(TOKENS, dtype=torch.long)
    want = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=7,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=length_penalty,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = want.sequences[:, TOKENS.shape[1] :].numpy().reshape(2, 4, 7)
    np.testing.assert_array_equal(got.tokens, texts)
    scores = want.sequences_scores.numpy().reshape(2, 4)
    np.testing.assert_allclose(got.scores, scores, rtol=1e-4)
