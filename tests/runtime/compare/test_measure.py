"""What is held while one document is read."""

import weakref

from PIL import Image

from calib_data.document import Document
from runtime.compare.baseline import FolderBaseline
from runtime.compare.measure import Read, measure
from runtime.generate import answer_parts


class Watched(FolderBaseline):
    """A folder that sees, before it predicts the next part, that nobody holds the one before."""

    def read(self, document, tokens):
        scored, predictions = super().read(document, tokens)
        return Read(scored, self._watched(predictions))

    def _watched(self, predictions):
        last = lambda: None  # noqa: E731
        while (part := next(predictions, None)) is not None:
            assert last() is None
            last = weakref.ref(part.logits)
            yield part
            del part


def test_the_logits_of_a_part_are_given_back_before_those_of_the_next(reader):
    document = Document(Image.new("RGB", (56, 56), "white"), "Read.", "12 " * 300, "long.png")
    measured = measure(Watched(reader), [reader], document)
    (difference,) = measured.differences
    assert len(answer_parts(len(difference.kl))) > 2
    assert set(difference.kl) == {0.0}
