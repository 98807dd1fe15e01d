"""The program in a model's card, run as it stands."""

import pytest

from gpt2_mlx import GPT2, GPT2Config, card, checkpoint

pytest.importorskip("transformers")
pytest.importorskip("mlx_lm")


@pytest.mark.parametrize("bits", [None, 4])
def test_every_program_of_the_card_opens_the_model(tmp_path, capsys, bits):
    model = GPT2(GPT2Config(block_size=64, n_layer=1, n_head=1, n_embd=32))
    if bits:
        model.quantize(bits)
    folder = tmp_path / "saved"
    checkpoint.save(folder, model)
    text = card.files(str(folder), folder, str(folder), model.quantization)["README.md"].decode()
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    assert capsys.readouterr().out.startswith("The")
