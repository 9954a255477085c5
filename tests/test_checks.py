"""What another library measures on the same weights is what we measure."""

import pytest

from helpers import patching
from studies import checks

pytestmark = pytest.mark.usefixtures("one_thread")
BASE, SOURCE, HEAD, ANSWERS = [5, 6, 7, 8], [9, 6, 10, 8], (0, 1), (11, 12)


@pytest.mark.parametrize("position", [None, -1, 0])
def test_a_head_patched_by_the_other_library_moves_the_answer_as_far(position, load_tiny):
    nodes = patching.list_nodes([HEAD], position=position)
    ours = patching.patch_sets(load_tiny("gpt2"), [BASE], [SOURCE], [nodes], answers=[ANSWERS])
    again = checks.patch_again(BASE, SOURCE, HEAD, ANSWERS, position=position)
    measured = again(load_tiny("gpt2", "transformer_lens").model)
    assert measured == pytest.approx(float(ours.values), abs=1e-4)
    assert abs(measured - float(ours.base)) > 1e-3, "the patch changes the answer"
