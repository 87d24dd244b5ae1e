"""The figures of a start are those of the model that was built."""

from pathlib import Path

from psalm.model.checkpoints import build_model
from psalm.tools.make_random_weights import write_random_weights
from psalm.tools.measure_loading import evict, measure


def test_a_start_is_measured(tmp_path: Path) -> None:
    write_random_weights(tmp_path, "small", towers=("base",))
    files = language_model, tower = tmp_path / "phi", tmp_path / "swin_base.pkl"
    evict(files)
    loading = measure(language_model, tower, "base")
    model, _ = build_model(str(language_model), str(tower), "base")
    assert loading.model == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert loading.peak <= loading.anonymous + loading.mapped
    assert loading.seconds > 0
