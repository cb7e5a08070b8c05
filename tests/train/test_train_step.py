import weakref

from pipeline.train.loop import _next_batch, _train_step
from pipeline.train.metrics import MetricSums
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run


def test_predictions_are_gone_when_the_backward_pass_begins(tiny_run, monkeypatch):
    """Those of a captioner are as large as all that the backward pass needs."""
    run = build_run(tiny_run(), "none")
    forward, backward, predictions = run.engine.forward, run.engine.backward, []

    def watched_forward(batch, **options):
        output = forward(batch, **options)
        predictions.append(weakref.ref(output.predictions))
        return output

    def watched_backward(loss, *, last):
        assert predictions[-1]() is None
        backward(loss, last=last)

    monkeypatch.setattr(run.engine, "forward", watched_forward)
    monkeypatch.setattr(run.engine, "backward", watched_backward)
    streams, watch = {name: iter(stream) for name, stream in run.streams.items()}, Stopwatch()
    first = _next_batch(run, streams, watch, "digits", 0)
    _train_step(run, ["digits"], first, streams, MetricSums(), watch)
    assert len(predictions) == 1
