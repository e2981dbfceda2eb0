"""The measurements of an answer."""

from bench.scale.run import answer, save_image, table
from runtime.model import Model


def test_an_answer_is_measured(exported, tmp_path):
    """Of an image of 3 x 2 image tokens, each in the prompt; the tokens after the first have a rate."""
    save_image(3, 2, tmp_path / "image.png")
    output, finished = answer(exported("w4"), tmp_path / "image.png", 4)
    without = len(Model(exported("w4"), "cpu").chat.encode("Read the text.", [0], thinking=False))
    assert output["prompt_tokens"] == without + 6
    output |= {"tokens": [1, 2, 3, 4], "tokens_per_second": 2.0}  # whatever it answered
    rows = table(finished, output, finished)
    assert rows[-2] == "| 3 more tokens, 2.00 a second | 1.5 | |"
    assert rows[-1] == f"| all of `generate` | {finished.seconds:.1f} | {finished.peak:.0f} |"
